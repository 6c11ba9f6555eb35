# Python packages exactly as locked, then only what runs: CPU, no root, models inside.
FROM python:3.11-slim-bookworm AS build
RUN pip install --no-cache-dir uv
WORKDIR /app
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-dev --no-install-project --no-cache
COPY LICENSE README.md ./
COPY ferflow ferflow
COPY models models
COPY training training
COPY tasks tasks
COPY flows flows
COPY configs configs
RUN uv sync --locked --no-dev --no-cache
RUN FERFLOW_CACHE=/app/cache .venv/bin/python -m models.detector_weights

FROM python:3.11-slim-bookworm
# MediaPipe opens no window, but does not start without these two.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgles2 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home ferflow \
    && install --directory --owner ferflow /results
COPY --from=build /app /app
# Matplotlib, which MediaPipe imports, wants to write somewhere under whatever user the container is run.
ENV PATH=/app/.venv/bin:$PATH FERFLOW_CACHE=/app/cache MPLCONFIGDIR=/tmp PYTHONUNBUFFERED=1
USER 10001
WORKDIR /results
ENTRYPOINT ["ferflow"]
CMD ["--help"]
