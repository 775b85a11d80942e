# One Nun node. It listens beyond loopback, so it wants CURVE keys and a password that is not the sample's:
#
#   docker build -t nun .
#   docker run --rm nun nun keygen > keys.toml            # then put both keys under [security] in a copy of conf/node1.toml
#   docker run -d --name nun -p 5701:5701 -v nun-data:/data -v ./node.toml:/etc/nun/node.toml:ro --stop-timeout 120 \
#       -e NUN_USER=admin -e NUN_PWD=... -e NUN_SERVER_KEY=<the public key> nun
#
# To try it alone: docker run --rm -it -e NUN_USER=nun -e NUN_PWD=nun-pwd nun --set security.insecure=true
# Arguments go to nun-node; those that begin with `nun` run the client.

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY nun nun
COPY storage storage
COPY actors actors
RUN python -m venv /opt/nun && /opt/nun/bin/pip install --no-cache-dir .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin nun \
    && install -d -o nun -g nun -m 0700 /data
COPY --from=build /opt/nun /opt/nun
COPY conf/node1.toml /etc/nun/node.toml
COPY deploy/docker-entrypoint /usr/local/bin/nun-entrypoint
ENV PATH=/opt/nun/bin:$PATH PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1
USER nun
WORKDIR /data
VOLUME /data
EXPOSE 5701
# Logs in with NUN_USER and NUN_PWD, over CURVE when NUN_SERVER_KEY is set.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["nun", "status", "--json", "--timeout", "5"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/nun-entrypoint"]
