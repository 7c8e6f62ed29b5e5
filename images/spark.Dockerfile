# The image of Spark's driver and executors: Spark and Python as the recipe's lock has them, and the entry point of Spark's own image,
# which is what Kubernetes calls them by. From the repository's root:
#   docker build -f images/spark.Dockerfile -t REGISTRY/cookbook-spark:0.1.0 .
# GPUs (RAPIDS): --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04
# checkov:skip=CKV_DOCKER_2:Kubernetes does not read HEALTHCHECK; Spark's driver itself notices an executor that is lost
# checkov:skip=CKV_DOCKER_7:each FROM names a stage or an ARG, and each ARG has a tag
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
ARG UV=docker.io/astral/uv:0.13.9
# The same version as pyspark in recipes/spark/requirements.txt.
ARG SPARK=docker.io/apache/spark:4.3.0

FROM ${UV} AS uv

FROM ${SPARK} AS spark

# What seldom changes comes first, here and below.
FROM ${BASE} AS system
# Debian keeps the newest build of a package only: a pinned one cannot be fetched for long.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends openjdk-17-jre-headless procps tini \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && (id -u 1000 >/dev/null 2>&1 || useradd --uid 1000 --create-home worker) && mkdir -p /srv/settings /srv/shared \
    && ln -s /srv/venv/lib/python3.11/site-packages/pyspark /opt/spark \
    && ln -s "$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")" /opt/java

FROM ${BASE} AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
RUN mkdir -p /opt/python && uv venv --python 3.11 /srv/venv && uv venv --python 3.11 /build/tools
COPY images/requirements-sbom.txt /build/
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --python /build/tools -r /build/requirements-sbom.txt
COPY recipes/spark/requirements.txt /build/
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --python /srv/venv -r /build/requirements.txt
# Headers serve a compiler, which is not in the image.
RUN find /srv/venv -depth -type d -not -path '*.dist-info/*' \( -name tests -o -name include \) -exec rm -r {} +
COPY runrecord /build/runrecord
RUN uv pip install --python /srv/venv --no-cache --no-deps --target /build/own /build/runrecord && rm /build/own/.lock
COPY --from=system /var/lib/dpkg/status /etc/os-release /build/system/
COPY images/sbom.py /build/
RUN PYTHONPATH=/build/own /build/tools/bin/cyclonedx-py environment --output-reproducible -o /build/packages.json /srv/venv \
    && /build/tools/bin/python /build/sbom.py /build/packages.json /build/system/status /build/system/os-release /build/sbom.cdx.json

FROM system
COPY --from=spark /opt/entrypoint.sh /opt/entrypoint.sh
COPY --from=build /opt/python /opt/python
COPY --from=build /srv/venv /srv/venv
ENV PATH=/srv/venv/bin:$PATH JAVA_HOME=/opt/java SPARK_HOME=/opt/spark \
    PYSPARK_PYTHON=/srv/venv/bin/python PYSPARK_DRIVER_PYTHON=/srv/venv/bin/python PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=build /build/own /srv/venv/lib/python3.11/site-packages
COPY --from=build /build/sbom.cdx.json /srv/sbom.cdx.json
COPY data /srv/data
COPY recipes/spark/*.py recipes/spark/*.yaml /srv/recipe/
USER 1000:1000
# The entry point writes a file where it is; in a pod only /tmp can be written to.
WORKDIR /tmp
ENTRYPOINT ["/opt/entrypoint.sh"]
