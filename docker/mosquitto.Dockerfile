# A stand-in for eclipse-mosquitto:2 from Debian's package, for a machine that reaches no image registry. The interface
# is the same: uid 1883, /mosquitto/config, /mosquitto/data and /mosquitto/log, and the configuration's place.
ARG DEBIAN_IMAGE=debian:bookworm-slim
FROM ${DEBIAN_IMAGE}
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean && groupadd -r -g 1883 mosquitto && \
    useradd -r -u 1883 -g mosquitto -d /mosquitto -s /usr/sbin/nologin mosquitto && apt-get -qq update && \
    apt-get -qq install -y --no-install-recommends mosquitto mosquitto-clients >/dev/null && \
    install -d -o mosquitto -g mosquitto /mosquitto /mosquitto/config /mosquitto/data /mosquitto/log
USER 1883:1883
EXPOSE 1883
CMD ["/usr/sbin/mosquitto", "-c", "/mosquitto/config/mosquitto.conf"]
