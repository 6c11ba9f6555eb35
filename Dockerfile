# Python packages exactly as locked, then only what runs: CPU, no root, models inside.
FROM python:3.11-slim-bookworm AS packages
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /app
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
COPY pyproject.toml uv.lock ./
# TensorFlow's headers, 0.3 GB, are for those who write new operations in C++.
RUN uv sync --locked --no-dev --no-install-project --no-cache \
    && rm -r .venv/lib/python3.11/site-packages/tensorflow/include

FROM python:3.11-slim-bookworm
# MediaPipe opens no window, but does not start without these two. Debian keeps no older version to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgles2 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home ferflow \
    && install --directory --owner ferflow /inbox /results /data
WORKDIR /app
# The packages are a layer of their own: a changed line of code makes only what follows anew.
COPY --from=packages /app /app
COPY LICENSE README.md ./
COPY ferflow ferflow
COPY models models
COPY training training
COPY tasks tasks
COPY flows flows
COPY viewer viewer
COPY configs configs
COPY prefect.yaml ./
# Matplotlib, which MediaPipe imports, Prefect, and what is brought from a bucket want to be written somewhere under
# whatever user the container is run; a server that cannot write its page's files beside its own code serves no page.
ENV PATH=/app/.venv/bin:$PATH FERFLOW_CACHE=/tmp/ferflow FERFLOW_MODELS=/data/models \
    MPLCONFIGDIR=/tmp PREFECT_HOME=/tmp/prefect PREFECT_UI_STATIC_DIRECTORY=/tmp/prefect/page PYTHONUNBUFFERED=1
RUN --mount=type=bind,from=packages,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    uv sync --locked --no-dev --no-cache && FERFLOW_CACHE=/app python -m models.detector_weights
ENV FERFLOW_DETECTOR_WEIGHTS=/app/detector
# Of what it does is known best where it is told to (compose.yaml); this says that the models are there and load.
HEALTHCHECK --interval=5m --timeout=60s CMD ["ferflow", "models", "list"]
USER 10001
WORKDIR /results
ENTRYPOINT ["ferflow"]
CMD ["--help"]
