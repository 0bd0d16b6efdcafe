"""A gateway as seen by a client that is not ours: grpcio, with code that grpc_tools generates from the .proto files, and once
with nothing but what server reflection tells.

Started by tests/it/python_client.rs, which builds the environment, starts the real gateway and sets
    NOVUM_ADDRESS   HOST:PORT of the gateway
    NOVUM_EXAMPLES  the folder of the example functions
"""

import hashlib
import os
import pathlib
import queue
import threading
import unittest

import grpc
from google.protobuf import descriptor_pool, duration_pb2, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from novum.gateway.v1 import admin_pb2, admin_pb2_grpc, functions_pb2, functions_pb2_grpc

ADDRESS = os.environ["NOVUM_ADDRESS"]
EXAMPLES = pathlib.Path(os.environ["NOVUM_EXAMPLES"])
LIMIT = 60  # seconds for any call; a test fails by it instead of hanging

LOOP = b'(module (memory (export "memory") 1) (func (export "_start") (loop $again (br $again))))'


def parts(manifest, artifact, chunk=1000, **start):
    """The messages of one Deploy stream."""
    start = functions_pb2.DeployRequest.Start(manifest=manifest, **start)
    yield functions_pb2.DeployRequest(start=start)
    for at in range(0, len(artifact), chunk):
        yield functions_pb2.DeployRequest(chunk=artifact[at : at + chunk])


class Requests:
    """The requests of a bidirectional call, sent when the test says so."""

    def __init__(self, *first):
        self.queue = queue.Queue()
        for message in first:
            self.queue.put(message)

    def send(self, **part):
        self.queue.put(functions_pb2.InvokeStreamRequest(**part))

    def close(self):
        self.queue.put(None)

    def __iter__(self):
        return iter(self.queue.get, None)


class GatewayTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.channel = grpc.insecure_channel(ADDRESS)
        grpc.channel_ready_future(cls.channel).result(timeout=LIMIT)
        cls.functions = functions_pb2_grpc.FunctionsStub(cls.channel)
        cls.admin = admin_pb2_grpc.AdminStub(cls.channel)
        for name, path in [("py-echo", "echo/echo.wat"), ("py-words", "wordcount/wordcount.wasm"), ("py-json", "json/json.wasm")]:
            cls.deploy(name, (EXAMPLES / path).read_bytes(), allow_env=["TOP"])
        cls.deploy("py-loop", LOOP)

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()

    @classmethod
    def deploy(cls, name, artifact, **manifest):
        manifest = functions_pb2.Manifest(name=name, engine=functions_pb2.ENGINE_WASM, **manifest)
        return cls.functions.Deploy(parts(manifest, artifact), timeout=LIMIT)

    def invoke(self, function, payload=b"", **request):
        request = functions_pb2.InvokeRequest(function=function, payload=payload, **request)
        return self.functions.Invoke(request, timeout=LIMIT)

    def refused(self, call, code):
        """The google.rpc details of the status with which a call must end."""
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        status = rpc_status.from_call(caught.exception)
        return [] if status is None else list(status.details)

    def unpack(self, details, kind):
        found = [detail for detail in details if detail.Is(kind.DESCRIPTOR)]
        self.assertEqual(len(found), 1, f"{kind.DESCRIPTOR.full_name} in {details}")
        message = kind()
        found[0].Unpack(message)
        return message

    # Deploy, Get, List, Delete

    def test_a_deployed_function_is_described_as_it_was_sent(self):
        artifact = (EXAMPLES / "echo/echo.wat").read_bytes()
        deployed = self.deploy("py-described", artifact, memory_bytes=1 << 20).function
        self.assertEqual(deployed.artifact_sha256, hashlib.sha256(artifact).hexdigest())
        self.assertEqual(deployed.artifact_bytes, len(artifact))
        self.assertEqual(deployed.manifest.memory_bytes, 1 << 20)
        self.assertEqual(deployed.manifest.timeout.seconds, 30)
        got = self.functions.Get(functions_pb2.GetRequest(name="py-described"), timeout=LIMIT).function
        self.assertEqual(got, deployed)

    def test_the_same_deploy_again_changes_nothing(self):
        artifact = (EXAMPLES / "echo/echo.wat").read_bytes()
        first = self.deploy("py-twice", artifact)
        second = self.deploy("py-twice", artifact)
        third = self.deploy("py-twice", artifact, args=["other"])
        self.assertEqual([first.changed, second.changed, third.changed], [True, False, True])
        self.assertEqual([d.function.version for d in (first, second, third)], [1, 1, 2])

    def test_a_list_comes_in_pages(self):
        names, token = [], ""
        while True:
            page = self.functions.List(functions_pb2.ListRequest(page_size=2, page_token=token), timeout=LIMIT)
            self.assertLessEqual(len(page.functions), 2)
            names += [function.manifest.name for function in page.functions]
            token = page.next_page_token
            if not token:
                break
        self.assertEqual(names, sorted(names))
        self.assertLessEqual({"py-echo", "py-json", "py-loop", "py-words"}, set(names))

    def test_a_deleted_function_is_gone(self):
        self.deploy("py-deleted", (EXAMPLES / "echo/echo.wat").read_bytes())
        self.functions.Delete(functions_pb2.DeleteRequest(name="py-deleted"), timeout=LIMIT)
        self.refused(lambda: self.invoke("py-deleted"), grpc.StatusCode.NOT_FOUND)

    # Invoke

    def test_the_payload_comes_back_with_the_timings(self):
        payload = bytes(range(256)) * 1000
        reply = self.invoke("py-echo", payload)
        self.assertEqual(reply.payload, payload)
        self.assertEqual(reply.exit.code, 0)
        self.assertEqual(reply.exit.WhichOneof("status"), "code")
        self.assertEqual(reply.timings.engine, functions_pb2.ENGINE_WASM)
        self.assertGreater(reply.timings.run.ToNanoseconds(), 0)
        self.assertGreater(reply.timings.first_byte.ToNanoseconds(), 0)
        self.assertTrue(reply.invocation_id)

    def test_a_program_that_fails_is_a_reply_with_its_exit_code_and_log(self):
        reply = self.invoke("py-json", b"[1,")
        self.assertEqual((reply.exit.code, reply.payload), (1, b""))
        self.assertEqual(reply.log_tail, b"line 1, column 4: a value is expected here\n")

    def test_an_allowed_variable_reaches_the_program(self):
        reply = self.invoke("py-words", b"a a b", env={"TOP": "1"})
        self.assertEqual(reply.payload, b'{"lines":1,"words":3,"top":[{"word":"a","count":2}]}\n')

    # Errors and their details

    def test_an_unknown_function_is_not_found(self):
        self.refused(lambda: self.invoke("py-none"), grpc.StatusCode.NOT_FOUND)

    def test_a_variable_that_is_not_allowed_names_its_field(self):
        details = self.refused(lambda: self.invoke("py-words", env={"HOME": "/"}), grpc.StatusCode.INVALID_ARGUMENT)
        violations = self.unpack(details, error_details_pb2.BadRequest).field_violations
        self.assertIn("HOME", violations[0].field + violations[0].description)

    def test_an_impossible_manifest_names_its_field(self):
        artifact = (EXAMPLES / "echo/echo.wat").read_bytes()
        details = self.refused(lambda: self.deploy("Not A Name", artifact), grpc.StatusCode.INVALID_ARGUMENT)
        violations = self.unpack(details, error_details_pb2.BadRequest).field_violations
        self.assertIn("name", violations[0].field)

    def test_what_is_not_wasm_is_refused(self):
        self.refused(lambda: self.deploy("py-bad", b"\0asm is not all that it takes"), grpc.StatusCode.INVALID_ARGUMENT)
        self.refused(lambda: self.invoke("py-bad"), grpc.StatusCode.NOT_FOUND)

    def test_a_wrong_checksum_is_refused(self):
        manifest = functions_pb2.Manifest(name="py-sum", engine=functions_pb2.ENGINE_WASM)
        stream = parts(manifest, LOOP, sha256="0" * 64)
        self.refused(lambda: self.functions.Deploy(stream, timeout=LIMIT), grpc.StatusCode.INVALID_ARGUMENT)

    def test_an_endless_loop_ends_at_its_deadline_and_says_what_ran(self):
        timeout = duration_pb2.Duration(nanos=200_000_000)
        details = self.refused(lambda: self.invoke("py-loop", timeout=timeout), grpc.StatusCode.DEADLINE_EXCEEDED)
        failure = self.unpack(details, functions_pb2.InvocationFailure)
        self.assertTrue(failure.invocation_id)
        self.assertGreater(failure.timings.run.ToNanoseconds(), 0)

    # Streams

    def test_a_stream_answers_before_its_input_ends(self):
        requests = Requests()
        requests.send(start=functions_pb2.InvokeStreamRequest.Start(function="py-echo"))
        replies = self.functions.InvokeStream(iter(requests), timeout=LIMIT)
        for piece in [b"one", b"two" * 10_000]:
            requests.send(input=piece)
            echoed = b""
            while len(echoed) < len(piece):
                echoed += next(replies).output
            self.assertEqual(echoed, piece)
        requests.close()
        last = list(replies)[-1]
        self.assertEqual(last.WhichOneof("part"), "end")
        self.assertEqual(last.end.exit.code, 0)

    def test_a_stream_carries_log_lines(self):
        requests = Requests()
        requests.send(start=functions_pb2.InvokeStreamRequest.Start(function="py-words", env={"TOP": "1"}))
        requests.send(input=b"a b\n")
        requests.close()
        replies = list(self.functions.InvokeStream(iter(requests), timeout=LIMIT))
        self.assertEqual(b"".join(reply.log for reply in replies), b"1 lines, 2 distinct words\n")

    def test_a_client_that_leaves_a_stream_harms_nobody(self):
        requests = Requests()
        requests.send(start=functions_pb2.InvokeStreamRequest.Start(function="py-echo"))
        requests.send(input=b"half")
        replies = self.functions.InvokeStream(iter(requests), timeout=LIMIT)
        self.assertEqual(next(replies).output, b"half")
        replies.cancel()
        requests.close()
        self.assertEqual(self.invoke("py-echo", b"still here").payload, b"still here")

    def test_followed_logs_show_an_invocation_that_comes_later(self):
        logs = self.functions.Logs(functions_pb2.LogsRequest(function="py-words", follow=True, tail=-1), timeout=LIMIT)
        lines = queue.Queue()

        def read():
            try:
                for line in logs:
                    lines.put(line)
            except grpc.RpcError:
                pass  # the cancel at the end

        reader = threading.Thread(target=read)
        reader.start()
        # There is no sign of the moment at which the gateway has begun to follow, so call until a line comes.
        seen, ids = None, set()
        while seen is None:
            ids.add(self.invoke("py-words", b"x y z").invocation_id)
            try:
                line = lines.get(timeout=0.2)
                seen = line if not line.note else None
            except queue.Empty:
                pass
        logs.cancel()
        reader.join(timeout=LIMIT)
        self.assertEqual(seen.line, "1 lines, 3 distinct words")
        self.assertIn(seen.invocation_id, ids)
        self.assertEqual(seen.function, "py-words")

    # The standard services

    def test_the_health_service_says_serving(self):
        health = health_pb2_grpc.HealthStub(self.channel)
        for service in ["", "novum.gateway.v1.Functions"]:
            reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=LIMIT)
            self.assertEqual(reply.status, health_pb2.HealthCheckResponse.SERVING, service)

    def test_reflection_alone_is_enough_to_invoke(self):
        database = ProtoReflectionDescriptorDatabase(self.channel)
        services = set(database.get_services())
        self.assertLessEqual({"novum.gateway.v1.Functions", "novum.gateway.v1.Admin", "grpc.health.v1.Health"}, services)
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName("novum.gateway.v1.Functions").FindMethodByName("Invoke")
        request = message_factory.GetMessageClass(method.input_type)
        reply = message_factory.GetMessageClass(method.output_type)
        call = self.channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        self.assertEqual(call(request(function="py-echo", payload=b"no stubs"), timeout=LIMIT).payload, b"no stubs")

    def test_the_stats_count_invocations(self):
        def succeeded():
            stats = self.admin.Stats(admin_pb2.StatsRequest(), timeout=LIMIT)
            return {counts.function: counts.succeeded for counts in stats.functions}.get("py-echo", 0)

        before = succeeded()
        self.invoke("py-echo")
        self.assertEqual(succeeded(), before + 1)


if __name__ == "__main__":
    unittest.main()
