# The image of Spark's driver and executors: Spark and Python as the recipe's lock has them, and the entry point of Spark's own image,
# which is what Kubernetes calls them by. From the repository's root:
#   docker build -f images/spark.Dockerfile -t REGISTRY/cookbook-spark:0.1.0 .
# GPUs (RAPIDS): --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04
ARG BASE=python:3.11.14-slim-bookworm
ARG UV=astral/uv:0.13.9
# The same version as pyspark in recipes/spark/requirements.txt.
ARG SPARK=apache/spark:4.3.0

FROM ${UV} AS uv

FROM ${SPARK} AS spark

FROM ${BASE} AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
RUN mkdir -p /opt/python && uv venv --python 3.11 /srv/venv
COPY recipes/spark/requirements.txt /build/
COPY runrecord /build/runrecord
RUN uv pip install --python /srv/venv -r /build/requirements.txt && uv pip install --python /srv/venv --no-deps /build/runrecord

FROM ${BASE}
# The base's own tag pins its packages' versions as far as Debian keeps them.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends openjdk-17-jre-headless procps tini \
    && rm -rf /var/lib/apt/lists/* \
    && (id -u 1000 >/dev/null 2>&1 || useradd --uid 1000 --create-home worker) && mkdir -p /srv/settings /srv/shared \
    && ln -s /srv/venv/lib/python3.11/site-packages/pyspark /opt/spark \
    && ln -s "$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")" /opt/java
COPY --from=build /opt/python /opt/python
COPY --from=build /srv/venv /srv/venv
COPY --from=spark /opt/entrypoint.sh /opt/entrypoint.sh
COPY data /srv/data
COPY recipes/spark/*.py recipes/spark/*.yaml /srv/recipe/
ENV PATH=/srv/venv/bin:$PATH JAVA_HOME=/opt/java SPARK_HOME=/opt/spark \
    PYSPARK_PYTHON=/srv/venv/bin/python PYSPARK_DRIVER_PYTHON=/srv/venv/bin/python PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
# The entry point writes a file where it is; in a pod only /tmp can be written to.
WORKDIR /tmp
ENTRYPOINT ["/opt/entrypoint.sh"]
