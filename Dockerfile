# The training image. build.sh fills in the arguments and secrets; a plain `DOCKER_BUILDKIT=1 docker build .` works too.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG WHEELS_IMAGE=scratch
FROM ${WHEELS_IMAGE} AS wheels

FROM ${BASE_IMAGE}

# Triton compiles with gcc and Python.h at its first use of a GPU. The official Python images carry the header,
# Debian's own Python has it in python3-dev. Debian keeps no old versions that could be pinned.
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && packages="gcc libc6-dev ca-certificates" \
    && if ! command -v python3 || [ /usr/bin/python3 = "$(command -v python3)" ]; \
        then packages="$packages python3-dev python3-venv"; fi \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages \
    && rm -rf /var/lib/apt/lists/*

# Which set: requirements-gpu.txt, or requirements.txt for the CPU image.
ARG REQUIREMENTS=requirements-gpu.txt
WORKDIR /build
COPY install.sh requirements*.txt requirements*.lock /build/
# Index, proxy certificate and their passwords come as secrets, which leave nothing in the layer.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    python3 -m venv /opt/venv \
    && bash install.sh /opt/venv/bin/python "$REQUIREMENTS" --find-links /wheels

# What a user adds, such as a tracker. It may need other versions than the pinned ones: pip says which it changes.
ARG EXTRA_PACKAGES=
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    [ -z "$EXTRA_PACKAGES" ] \
    || /opt/venv/bin/python -m pip install --find-links /wheels $EXTRA_PACKAGES

# Every cache lies below /cache, and any --user may write there and to the outputs. getpass and expanduser read USER
# and HOME, so that a uid without an entry in /etc/passwd is as good as any.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    USER=trainer LOGNAME=trainer HOME=/cache XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface TRITON_CACHE_DIR=/cache/triton TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    UNSLOTH_COMPILE_LOCATION=/cache/unsloth NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN mkdir -p /app/gpt-oss-grpo /cache/huggingface && chmod -R a+rwX /app/gpt-oss-grpo /cache
# With --read-only, these two can be written without further options.
VOLUME ["/cache", "/tmp"]

WORKDIR /app
COPY --chmod=755 . /app
ARG REVISION=unknown VERSIONS=unknown
LABEL org.opencontainers.image.title="gpt-oss-grpo" \
      org.opencontainers.image.description="GRPO fine-tuning of gpt-oss-20b and other causal language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      gpt-oss-grpo.versions="${VERSIONS}"
USER 1000:1000
ENTRYPOINT ["python"]
CMD ["train.py"]
