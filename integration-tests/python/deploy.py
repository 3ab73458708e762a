"""Runs an image of the room as a service, follows the deploy, and removes it: a client with no code of Hearth's.

    HEARTH_TOKEN=... deploy.py HOST:PORT IMAGE

The service's log goes to stderr; the events' names, and at the end the service's status, to stdout.
"""

import os
import sys

import grpc
from client import Service
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main():
    address, image = sys.argv[1:]
    metadata = [("authorization", f"Bearer {os.environ['HEARTH_TOKEN']}")]
    with grpc.insecure_channel(address) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        services = Service(channel, pool, "hearth.v1.Services", metadata)
        deployed = services.Deploy(spec={"image": image, "env": {"BY": {"plain": "python"}}})
        last = None
        for event in services.Watch(service=deployed.service_id, revision=deployed.revision):
            last = event.WhichOneof("event")
            print(last)
            if last == "log":
                print(event.log.line.text, file=sys.stderr)
        status = pool.FindEnumTypeByName("hearth.v1.ServiceStatus")
        service = services.Get(service=deployed.name)
        print(status.values_by_number[service.status].name)
        services.Remove(service=deployed.name)
        return 0 if last == "live" else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
        sys.exit(1)
