// go-redis as a client of the server: main ADDRESS.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const patience = 60 * time.Second

func check(is bool, what string, args ...any) {
	if !is {
		log.Fatalf(what, args...)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Output(2, err.Error())
		os.Exit(1)
	}
	return value
}

func main() {
	log.SetFlags(log.Lshortfile)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := redis.NewClient(&redis.Options{Addr: os.Args[1]})
	defer client.Close()

	check(must(client.Ping(ctx).Result()) == "PONG", "a ping")
	check(must(client.Set(ctx, "go:a", "1", time.Hour).Result()) == "OK", "a set")
	check(must(client.Get(ctx, "go:a").Result()) == "1", "a get")
	_, err := client.Get(ctx, "go:none").Result()
	check(errors.Is(err, redis.Nil), "nothing: %v", err)
	must(client.HSet(ctx, "go:h", "f", "1", "g", "2").Result())
	all := must(client.HGetAll(ctx, "go:h").Result())
	check(len(all) == 2 && all["g"] == "2", "a hash: %v", all)
	must(client.ZAdd(ctx, "go:z", redis.Z{Score: 1.5, Member: "m"}).Result())
	scores := must(client.ZRangeWithScores(ctx, "go:z", 0, -1).Result())
	check(len(scores) == 1 && scores[0].Score == 1.5, "scores: %v", scores)
	must(client.SAdd(ctx, "go:s", "x").Result())
	check(must(client.SMembers(ctx, "go:s").Result())[0] == "x", "a set of members")

	piped := must(client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for range 1000 {
			pipe.Incr(ctx, "go:piped")
		}
		return nil
	}))
	check(piped[999].(*redis.IntCmd).Val() == 1000, "a pipeline")
	done := must(client.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.Incr(ctx, "go:tx")
		pipe.Get(ctx, "go:tx")
		return nil
	}))
	check(done[1].(*redis.StringCmd).Val() == "1", "a transaction")

	count := locked(ctx, client)
	keys := 0
	for n := range 500 {
		must(client.Set(ctx, fmt.Sprintf("go:scan:%d", n), "v", 0).Result())
	}
	iter := client.Scan(ctx, 0, "go:scan:*", 0).Iterator()
	for iter.Next(ctx) {
		keys++
	}
	check(iter.Err() == nil && keys == 500, "a scan: %d %v", keys, iter.Err())
	messages(ctx, client)
	fmt.Printf("go-redis %s, %d were refused\n", redis.Version(), count)
}

// Counts up with optimistic locks, from many goroutines at once.
func locked(ctx context.Context, client *redis.Client) int {
	const workers, rounds = 8, 50
	var mutex sync.Mutex
	var group sync.WaitGroup
	refused := 0
	for range workers {
		group.Add(1)
		go func() {
			defer group.Done()
			for done := 0; done < rounds; {
				err := client.Watch(ctx, func(tx *redis.Tx) error {
					n, err := tx.Get(ctx, "go:n").Int()
					if err != nil && !errors.Is(err, redis.Nil) {
						return err
					}
					_, err = tx.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
						pipe.Set(ctx, "go:n", n+1, 0)
						return nil
					})
					return err
				}, "go:n")
				if errors.Is(err, redis.TxFailedErr) {
					mutex.Lock()
					refused++
					mutex.Unlock()
					continue
				}
				check(err == nil, "a lock: %v", err)
				done++
			}
		}()
	}
	group.Wait()
	check(must(client.Get(ctx, "go:n").Int()) == workers*rounds, "no update is lost")
	return refused
}

func messages(ctx context.Context, client *redis.Client) {
	channel, pattern := client.Subscribe(ctx, "go:news"), client.PSubscribe(ctx, "go:*")
	defer channel.Close()
	defer pattern.Close()
	must(channel.Receive(ctx))
	must(pattern.Receive(ctx))
	for n := range 100 {
		check(must(client.Publish(ctx, "go:news", n).Result()) == 2, "two receivers")
	}
	for n := range 100 {
		for _, subscription := range []*redis.PubSub{channel, pattern} {
			message := must(subscription.ReceiveMessage(ctx))
			check(message.Payload == fmt.Sprint(n) && message.Channel == "go:news", "%v", message)
		}
	}
	check(channel.Ping(ctx) == nil, "a ping of a subscriber")
	_, pong := must(channel.Receive(ctx)).(*redis.Pong)
	check(pong, "a pong of a subscriber")
	check(channel.Unsubscribe(ctx, "go:news") == nil, "unsubscribed")
}
