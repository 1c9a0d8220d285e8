// What a stock Node.js gRPC client relies on, against a running cluster. Run by tests/tests/grpc.rs.
//
// Usage: node grpc_client.js MODULES PROTO_FOLDER CA_FILE TOKEN CLUSTER_NAME ADDRESS...
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const path = require('node:path');

const [modules, protoFolder, caFile, token, cluster, ...addresses] = process.argv.slice(2);
const grpc = require(path.join(modules, '@grpc/grpc-js'));
const loader = require(path.join(modules, '@grpc/proto-loader'));

const definition = loader.loadSync(['krita/v1/service.proto', 'grpc/health/v1/health.proto'], {
  includeDirs: [protoFolder], keepCase: true, longs: String, defaults: true, oneofs: true,
});
const packages = grpc.loadPackageDefinition(definition);
const credentials = grpc.credentials.createSsl(fs.readFileSync(caFile));
const metadata = new grpc.Metadata();
metadata.set('authorization', `Bearer ${token}`);
metadata.set('krita-cluster', cluster);

const call = (client, method, request, sent = metadata) => new Promise((resolve, reject) => {
  client[method](request, sent, { deadline: Date.now() + 10000 }, (error, reply) => {
    if (error) reject(error); else resolve(reply);
  });
});

const scan = (client, request) => new Promise((resolve, reject) => {
  const keys = [];
  const stream = client.Scan(request, metadata);
  stream.on('data', (page) => keys.push(...page.items.map((item) => item.key.toString())));
  stream.on('end', () => resolve(keys));
  stream.on('error', reject);
});

async function main() {
  for (const address of addresses) {
    const client = new packages.krita.v1.Krita(address, credentials);
    const keys = Array.from({ length: 20 }, (_, number) => `node/${address}/${String(number).padStart(2, '0')}`);
    await Promise.all(keys.map((key) => call(client, 'Put', { key: Buffer.from(key), value: Buffer.from('v') })));
    const read = await call(client, 'Get', { key: Buffer.from(keys[3]) });
    assert.ok(read.found && read.value.toString() === 'v' && Number(read.version) > 0);
    assert.deepStrictEqual(await scan(client, { prefix: Buffer.from(`node/${address}/`) }), keys);
    await assert.rejects(call(client, 'Put', { key: Buffer.alloc(0) }), (error) => {
      assert.strictEqual(error.code, grpc.status.INVALID_ARGUMENT);
      assert.ok(error.metadata.get('grpc-status-details-bin')[0].includes('INVALID_ARGUMENT'));
      return true;
    });
    await assert.rejects(call(client, 'Get', { key: Buffer.from('k') }, new grpc.Metadata()), {
      code: grpc.status.UNAUTHENTICATED,
    });
    const health = new packages.grpc.health.v1.Health(address, credentials);
    const state = await call(health, 'Check', {}, new grpc.Metadata());
    assert.strictEqual(state.status, 1);
    client.close();
    health.close();
  }
  console.log('done');
}

main().catch((error) => { console.error(error); process.exit(1); });
