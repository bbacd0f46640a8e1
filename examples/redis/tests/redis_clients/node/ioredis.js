// ioredis as a client of the server: node ioredis.js PORT
"use strict";

const assert = require("node:assert");
const { version } = require("ioredis/package.json");
const Redis = require("ioredis");

const port = Number(process.argv[2]);

function next(emitter, event, count) {
  return new Promise((done) => {
    const all = [];
    emitter.on(event, (...args) => {
      all.push(args);
      if (all.length === count) done(all);
    });
  });
}

async function check(options) {
  const client = new Redis(port, options);
  await client.flushall();
  assert.equal(await client.ping(), "PONG");
  assert.equal(await client.set("js:a", 1, "EX", 3600), "OK");
  assert.equal(await client.get("js:a"), "1");
  assert.equal(await client.get("js:none"), null);
  await client.hset("js:h", { f: 1, g: 2 });
  assert.deepEqual({ ...(await client.hgetall("js:h")) }, { f: "1", g: "2" });
  await assert.rejects(client.incr("js:h"), /WRONGTYPE/);

  const done = await client.multi().incr("js:tx").get("js:tx").exec();
  assert.deepEqual(done, [[null, 1], [null, "1"]]);
  const piped = client.pipeline();
  for (let n = 0; n < 1000; n++) piped.incr("js:piped");
  assert.deepEqual((await piped.exec())[999], [null, 1000]);

  const other = new Redis(port, options);
  await client.watch("js:a");
  await other.set("js:a", 2);
  assert.equal(await client.multi().set("js:a", 3).exec(), null);
  await client.watch("js:a");
  assert.deepEqual(await client.multi().set("js:a", 3).exec(), [[null, "OK"]]);

  const keys = {};
  for (let n = 0; n < 500; n++) keys[`js:scan:${n}`] = n;
  await client.mset(keys);
  const found = new Set();
  for await (const some of client.scanStream({ match: "js:scan:*" })) some.forEach((key) => found.add(key));
  assert.equal(found.size, 500);

  const subscriber = new Redis(port, options);
  assert.equal(await subscriber.subscribe("js:news"), 1);
  assert.equal(await subscriber.psubscribe("js:*"), 2);
  const messages = next(subscriber, "message", 100);
  const patterns = next(subscriber, "pmessage", 100);
  for (let n = 0; n < 100; n++) assert.equal(await client.publish("js:news", n), 2);
  (await messages).forEach((message, n) => assert.deepEqual(message, ["js:news", String(n)]));
  (await patterns).forEach((message, n) => assert.deepEqual(message, ["js:*", "js:news", String(n)]));
  if (options.protocol === 2) await assert.rejects(subscriber.get("js:a"), /subscriber mode/);
  else assert.equal(await subscriber.get("js:a"), "3");
  await subscriber.unsubscribe("js:news");
  await subscriber.punsubscribe("js:*");
  assert.equal(await subscriber.get("js:a"), "3");

  for (const one of [client, other, subscriber]) assert.equal(await one.quit(), "OK");
}

async function main() {
  for (const options of [{}, { protocol: 2 }]) await check(options);
  console.log(version);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
