// node-redis as a client of the server: node node_redis.js PORT
"use strict";

const assert = require("node:assert");
const { createClient, WatchError } = require("redis");
const { version } = require("redis/package.json");

const port = Number(process.argv[2]);

async function check(options) {
  const connect = () => createClient({ socket: { port }, ...options }).connect();
  const client = await connect();
  await client.flushAll();
  assert.equal(await client.ping(), "PONG");
  assert.equal(await client.set("js:a", "1", { EX: 3600 }), "OK");
  assert.equal(await client.get("js:a"), "1");
  assert.equal(await client.get("js:none"), null);
  await client.hSet("js:h", { f: "1", g: "2" });
  assert.deepEqual({ ...(await client.hGetAll("js:h")) }, { f: "1", g: "2" });
  await client.zAdd("js:z", { score: 1.5, value: "m" });
  assert.deepEqual(await client.zRangeWithScores("js:z", 0, -1), [{ value: "m", score: 1.5 }]);
  await assert.rejects(client.incr("js:h"), /WRONGTYPE/);
  assert.deepEqual(await client.multi().incr("js:tx").get("js:tx").exec(), [1, "1"]);

  const other = await connect();
  await client.watch("js:a");
  await other.set("js:a", "2");
  await assert.rejects(client.multi().set("js:a", "3").exec(), WatchError);
  await client.watch("js:a");
  assert.deepEqual(await client.multi().set("js:a", "3").exec(), ["OK"]);

  for (let n = 0; n < 500; n++) await client.set(`js:scan:${n}`, "v");
  const found = new Set();
  for await (const keys of client.scanIterator({ MATCH: "js:scan:*" })) keys.forEach((key) => found.add(key));
  assert.equal(found.size, 500);

  const subscriber = await connect();
  const messages = [];
  await new Promise(async (done) => {
    const heard = (message) => {
      messages.push(message);
      if (messages.length === 200) done();
    };
    await subscriber.subscribe("js:news", heard);
    await subscriber.pSubscribe("js:n*", heard);
    for (let n = 0; n < 100; n++) assert.equal(await client.publish("js:news", String(n)), 2);
  });
  messages.forEach((message, n) => assert.equal(message, String(Math.floor(n / 2))));
  await subscriber.unsubscribe();
  await subscriber.pUnsubscribe();
  assert.equal(await subscriber.get("js:a"), "3");
  for (const one of [client, other, subscriber]) await one.close();
}

async function main() {
  for (const options of [{}, { RESP: 2 }, { RESP: 3 }]) await check(options);
  console.log(version);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
