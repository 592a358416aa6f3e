# An image for a device that measures, searches and serves a bundle. It has no torch.
#
#   docker build -t fxelastic .
#   docker run --rm -v "$PWD:/data" fxelastic profile bundle
#   docker run --rm -v "$PWD:/data" fxelastic search bundle --data local.npz --budget 60%
#   docker run --rm -v "$PWD:/data" -p 127.0.0.1:8765:8765 fxelastic \
#       serve bundle --pool bundle.pool.json --budget-ms 20 --http 0.0.0.0:8765
FROM python:3.12-slim

COPY pyproject.toml setup.cfg constraints.txt README.md LICENSE /fxelastic/
COPY src /fxelastic/src
RUN pip install --no-cache-dir --constraint /fxelastic/constraints.txt '/fxelastic[serve,sign]' \
    && useradd --create-home device

# Files of the mounted folder belong to its user: run with --user "$(id -u)" to write there.
USER device
WORKDIR /data
ENTRYPOINT ["fxelastic"]
