"""Builds a directory of room storage and prints the build's log: a client with no code of Hearth's.

Message types come from the daemon itself, through gRPC server reflection.

    HEARTH_TOKEN=... client.py HOST:PORT TAG ROOM_PATH

The log goes to stderr, the digest to stdout. Exit codes: 0; the failed step's own; 1; 3 when denied.
"""

import os
import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

LIMIT_SECONDS = 100


class Service:
    """Calls by name, of a service that reflection describes."""

    def __init__(self, channel, pool, name, metadata):
        self._channel = channel
        self._service = pool.FindServiceByName(name)
        self._metadata = metadata

    def __getattr__(self, name):
        method = self._service.methods_by_name[name]
        make = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        call = make(
            f"/{self._service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        request = message_factory.GetMessageClass(method.input_type)
        return lambda **fields: call(request(**fields), metadata=self._metadata, timeout=LIMIT_SECONDS)


def main():
    address, tag, room_path = sys.argv[1:]
    token = os.environ.get("HEARTH_TOKEN", "")
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        builds = Service(channel, pool, "hearth.v1.Builds", metadata)
        submitted = builds.Submit(spec={"tag": tag, "mounts": [{"room_path": room_path, "target": "/context"}]})
        build = None
        for event in builds.Watch(build_id=submitted.build_id):
            kind = event.WhichOneof("event")
            if kind == "step_started":
                print(event.step_started.name, file=sys.stderr)
            elif kind == "step_log":
                sys.stderr.buffer.write(event.step_log.data)
                sys.stderr.flush()
            elif kind == "finished":
                build = event.finished
        assert build is not None, "the stream ended before the build"
        if build.result.digest:
            print(build.result.digest)
            return 0
        error = build.error
        print(f"{error.code}: {error.message}", *error.log_tail, sep="\n", file=sys.stderr)
        return error.exit_code if error.HasField("exit_code") else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
        denied = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        sys.exit(3 if error.code() in denied else 1)
