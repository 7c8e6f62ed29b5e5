# Horovod's image: compiled against the framework in it, with Open MPI and an sshd, as Kubeflow Trainer's MPI policy wants it.
# From the repository's root:
#   docker build -f images/horovod.Dockerfile -t REGISTRY/cookbook-horovod:0.1.0 .
# TensorFlow: --build-arg LOCK=requirements-tensorflow.txt. GPUs: a base that has nvcc and NCCL, and say that Horovod is to use it:
#   --build-arg BASE=nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04 --build-arg GPU_OPERATIONS=NCCL
# checkov:skip=CKV_DOCKER_2:Kubernetes does not read HEALTHCHECK; the readinessProbe of the pods asks the sshd
# checkov:skip=CKV_DOCKER_7:each FROM names a stage or an ARG, and each ARG has a tag
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
ARG UV=docker.io/astral/uv:0.13.9

FROM ${UV} AS uv

# What seldom changes comes first, here and below.
FROM ${BASE} AS system
# Debian keeps the newest build of a package only: a pinned one cannot be fetched for long.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends openssh-client openssh-server \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /etc/ssh/ssh_host_* \
    && (id -u 1000 >/dev/null 2>&1 || useradd --uid 1000 --create-home worker) && mkdir -p /srv/settings /srv/shared /run/sshd

FROM ${BASE} AS build
# Debian keeps the newest build of a package only: a pinned one cannot be fetched for long.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
RUN mkdir -p /opt/python && uv venv --python 3.11 /srv/venv && uv venv --python 3.11 /build/tools
COPY images/requirements-sbom.txt /build/
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --python /build/tools -r /build/requirements-sbom.txt
ARG LOCK=requirements.txt
# More words for `uv pip install`, such as --torch-backend=cpu.
ARG INSTALL_OPTIONS=""
COPY recipes/horovod/requirements* /build/recipe/
# INSTALL_OPTIONS is a list of words.
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --python /srv/venv ${INSTALL_OPTIONS} -r "/build/recipe/${LOCK}"
ARG GPU_OPERATIONS=""
COPY recipes/horovod/build_wheels.py /build/recipe/
RUN HOROVOD_GPU_OPERATIONS="${GPU_OPERATIONS}" /srv/venv/bin/python /build/recipe/build_wheels.py /build/wheels
# What has built Horovod is done, and headers serve a compiler, which is not in the image.
RUN uv pip uninstall --python /srv/venv cmake ninja pip wheel \
    && find /srv/venv -depth -type d -not -path '*.dist-info/*' \( -name tests -o -name include -o -path '*/torch/test' \) -exec rm -r {} +
COPY runrecord /build/runrecord
RUN uv pip install --python /srv/venv --no-cache --no-deps --target /build/own /build/runrecord && rm /build/own/.lock
COPY --from=system /var/lib/dpkg/status /etc/os-release /build/system/
COPY images/sbom.py /build/
RUN PYTHONPATH=/build/own /build/tools/bin/cyclonedx-py environment --output-reproducible -o /build/packages.json /srv/venv \
    && /build/tools/bin/python /build/sbom.py /build/packages.json /build/system/status /build/system/os-release /build/sbom.cdx.json

FROM system
COPY --from=build /opt/python /opt/python
COPY --from=build /srv/venv /srv/venv
ENV PATH=/srv/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=build /build/own /srv/venv/lib/python3.11/site-packages
COPY --from=build /build/sbom.cdx.json /srv/sbom.cdx.json
COPY data /srv/data
COPY recipes/horovod/*.py /srv/recipe/
USER 1000:1000
WORKDIR /srv/recipe
