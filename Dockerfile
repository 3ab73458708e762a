# The image of the daemon: hearthd, hearth, and what it starts: BuildKit, containerd, runc and nft. `make self-image`
# builds it with Hearth itself and replaces the three bases; any other builder takes the defaults. The room's state is a volume. Builds
# and services need the privileges of a container host: run it with --privileged, or see deploy/systemd for a machine.
ARG BUILD_BASE=rust:1.95-bookworm
ARG RUNTIME_BASE=debian:bookworm-slim
ARG BUILDKIT_IMAGE=moby/buildkit:v0.32.2

FROM ${BUILDKIT_IMAGE} AS buildkit

FROM ${BUILD_BASE} AS build
# Only where the base has no protoc, so that a base with one builds without a network.
RUN command -v protoc >/dev/null || { apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends protobuf-compiler libprotobuf-dev; }
WORKDIR /src
COPY . .
# The cache mount keeps the compiled crates between builds; the binaries leave it within the same step.
RUN --mount=type=cache,target=/src/target \
    cargo build --release --locked -p hearthd -p hearth \
    && install -D -t /out/usr/local/bin target/release/hearthd target/release/hearth \
    && target/release/hearth man /out/usr/local/share/man/man1

# What the final image adds, in one tree and so in one layer.
FROM build AS files
COPY --from=buildkit /usr/bin/buildkitd /usr/bin/buildctl /out/usr/local/bin/
# BuildKit's image carries runc under a name of its own.
COPY --from=buildkit /usr/bin/buildkit-runc /out/usr/local/bin/runc
RUN install -D -m 0644 deploy/config/hearthd.toml /out/etc/hearth/hearthd.toml \
    && install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt

FROM ${RUNTIME_BASE}
# As above: a base that has them builds without a network.
RUN { command -v containerd && command -v nft; } >/dev/null || { apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends containerd nftables && rm -rf /var/lib/apt/lists/*; }
COPY --from=files /out/ /
VOLUME /var/lib/hearth
EXPOSE 4327 4380
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/hearthd"]
# In a container, loopback would reach nobody.
CMD ["--config", "/etc/hearth/hearthd.toml", "--listen", "0.0.0.0:4327", "--ingress", "0.0.0.0:4380"]
