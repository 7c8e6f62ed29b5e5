# The image of a recipe whose packages come as wheels: pytorch, tensorflow, petastorm, dask, ray_*. From the repository's root:
#   docker build -f images/python.Dockerfile --build-arg RECIPE=pytorch -t REGISTRY/cookbook-pytorch:0.1.0 .
# Ray's recipes: --build-arg EXTRA=ray (what a cluster's job server needs beside a recipe's own packages).
# TensorFlow in a recipe that has both: --build-arg LOCK=requirements-tensorflow.txt.
# GPUs: torch from PyPI brings CUDA's libraries, so the default base does. For a base with CUDA:
#   --build-arg BASE=nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 (any Debian or Ubuntu serves: uv brings the Python)
ARG BASE=python:3.11.14-slim-bookworm
ARG UV=astral/uv:0.13.9

FROM ${UV} AS uv

FROM ${BASE} AS build
ARG RECIPE
ARG LOCK=requirements.txt
ARG EXTRA=none
# More words for `uv pip install`, such as another index for a CPU build of torch.
ARG INSTALL_OPTIONS=""
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
RUN mkdir -p /opt/python && uv venv --python 3.11 /srv/venv
COPY recipes/${RECIPE}/*.txt /build/recipe/
COPY images/*.txt /build/extra/
COPY runrecord /build/runrecord
# INSTALL_OPTIONS is a list of words.
# hadolint ignore=SC2086
RUN touch /build/recipe/overrides.txt /build/extra/requirements-none.txt \
    && uv pip install --python /srv/venv ${INSTALL_OPTIONS} -r "/build/recipe/${LOCK}" -r "/build/extra/requirements-${EXTRA}.txt" \
        --override /build/recipe/overrides.txt \
    && uv pip install --python /srv/venv --no-deps /build/runrecord

FROM ${BASE}
ARG RECIPE
# wget: KubeRay asks by it whether a Ray node is well. The base's own tag pins the packages' versions as far as Debian keeps them.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && (id -u 1000 >/dev/null 2>&1 || useradd --uid 1000 --create-home worker) && mkdir -p /srv/settings /srv/shared
COPY --from=build /opt/python /opt/python
COPY --from=build /srv/venv /srv/venv
COPY data /srv/data
COPY recipes/${RECIPE}/*.py /srv/recipe/
ENV PATH=/srv/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /srv/recipe
