# Horovod's image: compiled against the framework in it, with Open MPI and an sshd, as Kubeflow Trainer's MPI policy wants it.
# From the repository's root:
#   docker build -f images/horovod.Dockerfile -t REGISTRY/cookbook-horovod:0.1.0 .
# TensorFlow: --build-arg LOCK=requirements-tensorflow.txt. GPUs: a base that has nvcc and NCCL, and say that Horovod is to use it:
#   --build-arg BASE=nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04 --build-arg GPU_OPERATIONS=NCCL
ARG BASE=python:3.11.14-slim-bookworm
ARG UV=astral/uv:0.13.9

FROM ${UV} AS uv

FROM ${BASE} AS build
ARG LOCK=requirements.txt
ARG GPU_OPERATIONS=""
# More words for `uv pip install`, such as another index for a CPU build of torch.
ARG INSTALL_OPTIONS=""
# The base's own tag pins its packages' versions as far as Debian keeps them.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
RUN mkdir -p /opt/python && uv venv --python 3.11 /srv/venv
COPY recipes/horovod/requirements*.txt recipes/horovod/build_wheels.py /build/recipe/
COPY runrecord /build/runrecord
# INSTALL_OPTIONS is a list of words.
# hadolint ignore=SC2086
RUN uv pip install --python /srv/venv ${INSTALL_OPTIONS} -r "/build/recipe/${LOCK}" \
    && HOROVOD_GPU_OPERATIONS="${GPU_OPERATIONS}" /srv/venv/bin/python /build/recipe/build_wheels.py /build/wheels \
    && uv pip install --python /srv/venv --no-deps /build/runrecord

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && (id -u 1000 >/dev/null 2>&1 || useradd --uid 1000 --create-home worker) && mkdir -p /srv/settings /srv/shared /run/sshd
COPY --from=build /opt/python /opt/python
COPY --from=build /srv/venv /srv/venv
COPY data /srv/data
COPY recipes/horovod/*.py /srv/recipe/
ENV PATH=/srv/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /srv/recipe
