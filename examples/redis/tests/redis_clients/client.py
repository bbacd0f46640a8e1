"""redis-py as a client of the server.

client.py PORT
"""

import sys
import threading

import redis

PATIENCE = 60  # seconds
DEFAULT_PROTOCOL = 3 if int(redis.__version__.split(".")[0]) >= 8 else 2

port = int(sys.argv[1])


def connect(**options):
    return redis.Redis(port=port, decode_responses=True, socket_timeout=PATIENCE, **options)


def values(client):
    assert client.ping()
    assert client.set("py:a", 1, ex=3600) and client.get("py:a") == "1"
    assert client.get("py:none") is None
    client.hset("py:h", mapping={"f": "1", "g": "2"})
    assert client.hgetall("py:h") == {"f": "1", "g": "2"}
    client.zadd("py:z", {"m": 1.5})
    assert [tuple(pair) for pair in client.zrange("py:z", 0, -1, withscores=True)] == [("m", 1.5)]
    assert client.zscore("py:z", "m") == 1.5
    client.sadd("py:s", "x")
    assert client.smembers("py:s") == {"x"}
    assert client.info()["redis_mode"] == "standalone"
    assert any(other["addr"] for other in client.client_list())
    assert client.config_get("save") == {"save": ""}
    try:
        client.incr("py:h")
    except redis.ResponseError as error:
        assert "WRONGTYPE" in str(error) or "wrong kind" in str(error)
    else:
        raise AssertionError("an error")


def transactions(client):
    with client.pipeline() as pipe:
        for _ in range(1000):
            pipe.incr("py:piped")
        assert pipe.execute()[-1] == 1000
    with client.pipeline(transaction=False) as pipe:
        pipe.set("py:b", "x").get("py:b")
        assert pipe.execute() == [True, "x"]
    # What is wrong within is told with the others done.
    with client.pipeline() as pipe:
        pipe.set("py:b", "y").lpush("py:b", 1).get("py:b")
        replies = pipe.execute(raise_on_error=False)
        assert replies[0] is True and replies[2] == "y" and isinstance(replies[1], redis.ResponseError)
    with client.pipeline() as pipe:
        pipe.watch("py:b")
        client.set("py:b", "z")
        pipe.multi()
        pipe.get("py:b")
        try:
            pipe.execute()
        except redis.WatchError:
            pass
        else:
            raise AssertionError("the key has changed")


def count_up(client, rounds):
    for _ in range(rounds):
        client.transaction(lambda pipe: step(pipe), "py:n")


def step(pipe):
    n = int(pipe.get("py:n") or 0)
    pipe.multi()
    pipe.set("py:n", n + 1)


def locks(client):
    threads = [threading.Thread(target=count_up, args=(client, 50)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get("py:n") == "200", client.get("py:n")


def scans(client):
    client.mset({f"py:scan:{n}": n for n in range(500)})
    assert len(set(client.scan_iter("py:scan:*"))) == 500
    client.hset("py:fields", mapping={str(n): n for n in range(500)})
    assert len(dict(client.hscan_iter("py:fields"))) == 500
    client.sadd("py:members", *range(500))
    assert len(set(client.sscan_iter("py:members"))) == 500
    client.zadd("py:scores", {str(n): n for n in range(500)})
    assert dict(client.zscan_iter("py:scores"))["7"] == 7.0
    assert sorted(client.keys("py:scan:1?")) == [f"py:scan:{n}" for n in range(10, 20)]


def messages(client, pongs):
    pubsub = client.pubsub()
    pubsub.subscribe("py:news")
    pubsub.psubscribe("py:n*")
    for kind in ["subscribe", "psubscribe"]:
        assert pubsub.get_message(timeout=PATIENCE)["type"] == kind
    for n in range(100):
        assert client.publish("py:news", n) == 2
    for n in range(100):
        for kind in ["message", "pmessage"]:
            message = pubsub.get_message(timeout=PATIENCE)
            assert (message["type"], message["data"]) == (kind, str(n)), message
    # By the newer protocol it is a reply like any other, which redis-py gives as it is.
    pubsub.ping()
    assert not pongs or pubsub.get_message(timeout=PATIENCE)["type"] == "pong"
    assert pongs or pubsub.parse_response(timeout=PATIENCE) in ("PONG", b"PONG")
    pubsub.unsubscribe()
    pubsub.punsubscribe()
    for kind in ["unsubscribe", "punsubscribe"]:
        assert pubsub.get_message(timeout=PATIENCE)["type"] == kind
    pubsub.close()


# As it is by default, and with each protocol.
for options in [{}, {"protocol": 2}, {"protocol": 3}]:
    with connect(**options) as client:
        client.flushall()
        values(client)
        transactions(client)
        locks(client)
        scans(client)
        messages(client, pongs=options.get("protocol", DEFAULT_PROTOCOL) == 2)
# Bytes, which is the default.
with redis.Redis(port=port) as client:
    assert client.set("py:a", b"\0\xff") and client.get("py:a") == b"\0\xff"
print(redis.__version__)
