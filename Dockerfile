# docker build -t medjax .                                  CPU
# docker build -t medjax --build-arg EXTRA=cuda13 .         NVIDIA GPUs (run with --gpus all)
# docker run --rm -v /data:/data -v "$PWD/runs:/home/medjax/runs" medjax verify /data/Task04_X
FROM python:3.12-slim

ARG EXTRA=formats
ENV PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    MEDJAX_HOME=/home/medjax/.cache

WORKDIR /src
COPY pyproject.toml README.md LICENSE hatch_build.py ./
COPY tests/constraints.txt constraints.txt
COPY medjax medjax
COPY medjax_verbs medjax_verbs
COPY configs configs
COPY data_pipelines data_pipelines
COPY docs docs
RUN pip install --constraint constraints.txt ".[formats,${EXTRA}]" \
    && rm -rf /src \
    && useradd --create-home medjax \
    && mkdir -p /home/medjax/runs \
    && chown -R medjax /home/medjax

WORKDIR /home/medjax
USER medjax
ENTRYPOINT ["medjax"]
CMD ["--help"]
