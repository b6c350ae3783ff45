# syntax=docker/dockerfile:1
# Targets: `runtime` is shopcrawl alone; `demo` adds the simulator of the vendor's API.
# Pin the base image by digest where you build: `docker buildx imagetools inspect python:3.12.12-slim-bookworm`.
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
COPY requirements/build.txt requirements/run.txt requirements/
RUN python -m venv /builder && /builder/bin/pip install --require-hashes -r requirements/build.txt
RUN python -m venv /app && /app/bin/pip install --only-binary :all: --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY worker worker
COPY producer producer
RUN /builder/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /app/bin/pip install --no-deps --no-index /wheels/*.whl \
    && /app/bin/python -m compileall -q /app/lib

FROM build AS build-demo
COPY requirements/demo.txt requirements/
RUN /app/bin/pip install --only-binary :all: --require-hashes -r requirements/demo.txt \
    && /app/bin/python -m compileall -q /app/lib

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 SHOPCRAWL_DATA_DIR=/tmp/shopcrawl
RUN groupadd --gid 10001 shopcrawl \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin shopcrawl
# Celery looks for modules in the working directory first: it must hold none named models, worker or producer.
WORKDIR /srv/shopcrawl
USER 10001:10001
STOPSIGNAL SIGTERM
CMD ["shopcrawl", "--help"]

FROM base AS demo
COPY --from=build-demo /app /app
COPY tests/__init__.py tests/__init__.py
COPY tests/simulator tests/simulator

FROM base AS runtime
COPY --from=build /app /app
