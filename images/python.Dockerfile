# The image of a recipe whose packages come as wheels: pytorch, tensorflow, petastorm, dask, ray_*. From the repository's root:
#   docker build -f images/python.Dockerfile --build-arg RECIPE=pytorch -t REGISTRY/cookbook-pytorch:0.1.0 .
# README.md, beside this file, says what the arguments do.
# checkov:skip=CKV_DOCKER_2:Kubernetes does not read HEALTHCHECK, and a training has no server to ask: it runs to its end
# checkov:skip=CKV_DOCKER_7:each FROM names a stage or an ARG, and each ARG has a tag
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
ARG UV=docker.io/astral/uv:0.13.9

FROM ${UV} AS uv

# What seldom changes comes first, here and below.
FROM ${BASE} AS system
# More Debian packages, such as Java for Petastorm.
ARG PACKAGES=""
# wget: KubeRay asks by it whether a Ray node is well.
# Debian keeps the newest build of a package only: a pinned one cannot be fetched for long. PACKAGES is a list of words.
# hadolint ignore=DL3008,SC2086
RUN apt-get update && apt-get install -y --no-install-recommends wget ${PACKAGES} \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && (id -u 1000 >/dev/null 2>&1 || useradd --uid 1000 --create-home worker) && mkdir -p /srv/settings /srv/shared

FROM ${BASE} AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
RUN mkdir -p /opt/python && uv venv --python 3.11 /srv/venv && uv venv --python 3.11 /build/tools
COPY images/*.txt /build/extra/
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --python /build/tools -r /build/extra/requirements-sbom.txt
ARG RECIPE
ARG LOCK=requirements.txt
ARG EXTRA=none
# More words for `uv pip install`, such as --torch-backend=cpu.
ARG INSTALL_OPTIONS=""
COPY recipes/${RECIPE}/*.txt /build/recipe/
# INSTALL_OPTIONS is a list of words.
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/uv touch /build/recipe/overrides.txt /build/extra/requirements-none.txt \
    && uv pip install --python /srv/venv ${INSTALL_OPTIONS} --override /build/recipe/overrides.txt \
        -r "/build/recipe/${LOCK}" -r "/build/extra/requirements-${EXTRA}.txt"
# Headers serve a compiler, which is not in the image. Only folders called "tests" are tests: tf.test is TensorFlow's interface.
RUN find /srv/venv -depth -type d -not -path '*.dist-info/*' \( -name tests -o -name include -o -path '*/torch/test' \) -exec rm -r {} +
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
ARG RECIPE
COPY recipes/${RECIPE}/*.py /srv/recipe/
USER 1000:1000
WORKDIR /srv/recipe
