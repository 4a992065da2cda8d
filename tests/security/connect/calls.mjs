// What a client of the Connect protocol gets: node calls.mjs ADDRESS DESCRIPTORS CA CALLS, the token in LUTHIER_TOKEN.
// CALLS is JSON: [service, method, request] of each; prints the answers as JSON, and one error.
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary, fromJson, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";

const [address, descriptors, ca, calls] = process.argv.slice(2);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const authorize = (next) => (request) => {
  request.header.set("authorization", `Bearer ${process.env.LUTHIER_TOKEN}`);
  return next(request);
};

function transport(useBinaryFormat, interceptors) {
  return createConnectTransport({
    baseUrl: `https://${address}`,
    httpVersion: "1.1",
    nodeOptions: { ca: readFileSync(ca) },
    useBinaryFormat,
    interceptors,
    jsonOptions: { registry },
  });
}

async function call(useBinaryFormat, name, method, request, interceptors = [authorize]) {
  const service = registry.getService(name);
  const found = service.methods.find((one) => one.name === method);
  const client = createClient(service, transport(useBinaryFormat, interceptors));
  const answer = await client[found.localName](fromJson(found.input, request, { registry }), { timeoutMs: 60_000 });
  if (found.methodKind !== "server_streaming") {
    return toJson(found.output, answer, { registry });
  }
  const messages = [];
  for await (const message of answer) {
    messages.push(toJson(found.output, message, { registry }));
  }
  return messages;
}

async function failure(...given) {
  try {
    await call(...given);
  } catch (error) {
    const wrong = ConnectError.from(error);
    return { code: Code[wrong.code], message: wrong.rawMessage, details: wrong.details.map((one) => one.type) };
  }
  throw new Error("it did not fail");
}

const asked = JSON.parse(calls);
const answers = [];
for (const one of asked) {
  answers.push({ json: await call(false, ...one), binary: await call(true, ...one) });
}
const [service, method, request] = asked[0];
console.log(
  JSON.stringify({
    answers,
    stranger: await failure(false, service, method, request, []),
    nobody: await failure(false, service, method, { ...request, model: "nobody" }),
    operation: await failure(true, "luthier.v1.OperationService", "WatchOperation", { name: "operations/00000000000000000000000000000000" }),
  }),
);
