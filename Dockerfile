# longeval in a container.
#
#     docker build -t longeval .                                   CUDA: the torch of the Python package index has it
#     docker build -t longeval:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#     docker run --rm -v "$PWD/runs:/data/runs" longeval ppl --model smollm2-135m-q4 --pe none,yarn --lengths 1k,2k --data stdlib
#
# With a GPU: docker run --gpus all …; nothing of CUDA but the driver has to be on the host.
FROM python:3.11-slim

ARG TORCH_INDEX=
ARG EXTRAS=

# git: a record names the commit that computed it; without git it says "not known".
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/longeval
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY longeval longeval
COPY tasks tasks
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && pip install --no-cache-dir -c constraints.txt ".$EXTRAS"

# Models and documents that are fetched, and everything that can be made again, go here; mount a volume to keep them.
ENV XDG_CACHE_HOME=/cache
WORKDIR /data
ENTRYPOINT ["longeval"]
CMD ["--help"]
