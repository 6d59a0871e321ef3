# The images, for `docker buildx bake -f docker/docker-bake.hcl`, from the root of the tree.
#
#   docker buildx bake -f docker/docker-bake.hcl                         for this machine
#   docker buildx bake -f docker/docker-bake.hcl release --push          for amd64 and arm64, to REGISTRY
#
# More than one platform needs a builder of the docker-container driver, with emulation or a node of each kind.

variable "REGISTRY" { default = "" }
variable "VERSION" { default = "0.1.0" }
variable "REVISION" { default = "unknown" }
variable "PYTHON_IMAGE" { default = "python:3.11-slim-bookworm" }
variable "DEBIAN_IMAGE" { default = "debian:bookworm-slim" }
# A file of certificates for a machine that fetches through a proxy with its own authority; empty on all others.
variable "CA" { default = "" }

group "default" { targets = ["agent", "slim", "demo"] }
group "release" { targets = ["agent-release", "slim-release"] }

target "shoal" {
  context    = "."
  dockerfile = "docker/Dockerfile"
  args       = { PYTHON_IMAGE = PYTHON_IMAGE, VERSION = VERSION, REVISION = REVISION }
  secret     = CA == "" ? [] : ["id=ca,src=${CA}"]
}

target "agent" {
  inherits = ["shoal"]
  target   = "agent"
  tags     = ["${REGISTRY}shoal-agent:${VERSION}", "${REGISTRY}shoal-agent:latest"]
}

target "slim" {
  inherits = ["shoal"]
  target   = "slim"
  tags     = ["${REGISTRY}shoal-slim:${VERSION}", "${REGISTRY}shoal-slim:latest"]
}

target "demo" {
  inherits = ["shoal"]
  target   = "demo"
  tags     = ["${REGISTRY}shoal-demo:latest"]
}

target "agent-release" {
  inherits  = ["agent"]
  platforms = ["linux/amd64", "linux/arm64"]
}

target "slim-release" {
  inherits  = ["slim"]
  platforms = ["linux/amd64", "linux/arm64"]
}

# Only where eclipse-mosquitto cannot be pulled.
target "mosquitto" {
  context    = "."
  dockerfile = "docker/mosquitto.Dockerfile"
  args       = { DEBIAN_IMAGE = DEBIAN_IMAGE }
  tags       = ["shoal-base/mosquitto:2"]
}
