# A machine that Ansible is let loose on: sshd and Python, as a server fresh from its installer has them. With
# DOCKER=docker.io it also has an engine, which does not run yet.
ARG DEBIAN_IMAGE=python:3.11-slim-bookworm
FROM ${DEBIAN_IMAGE}
ARG DOCKER=
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean && apt-get -qq update && \
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        openssh-server openssh-sftp-server iproute2 iptables python3 ${DOCKER} >/dev/null
COPY target-start /usr/local/bin/
CMD ["target-start"]
