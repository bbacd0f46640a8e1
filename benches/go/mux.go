package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/cloudwego/netpoll"
	"github.com/cloudwego/netpoll/mux"
)

// Messages of the comparison of calls: four bytes of length, eight of a number, and a body.
const callHeaderBytes = 12

func frame(number uint64, body []byte) *netpoll.LinkBuffer {
	message := netpoll.NewLinkBuffer(callHeaderBytes)
	header, _ := message.Malloc(callHeaderBytes)
	binary.BigEndian.PutUint32(header, uint32(len(body)))
	binary.BigEndian.PutUint64(header[4:], number)
	message.WriteBinary(body)
	message.Flush()
	return message
}

func add(queue *mux.ShardQueue, message *netpoll.LinkBuffer) {
	queue.Add(func() (netpoll.Writer, bool) { return message, false })
}

// nextCall waits for a whole message, and gives its number and a copy of its body.
func nextCall(reader netpoll.Reader) (uint64, []byte, error) {
	header, err := reader.Next(callHeaderBytes)
	if err != nil {
		return 0, nil, err
	}
	length, number := binary.BigEndian.Uint32(header), binary.BigEndian.Uint64(header[4:])
	body, err := reader.ReadBinary(int(length))
	if err != nil {
		return 0, nil, err
	}
	return number, body, reader.Release()
}

type queueKey struct{}

// serveMux answers each call from a goroutine of its own, through netpoll's ShardQueue, as the mux server of netpoll-benchmark
// does.
func serveMux(network, address string) error {
	listener, err := netpoll.CreateListener(network, address)
	if err != nil {
		return err
	}
	handler := func(ctx context.Context, conn netpoll.Connection) error {
		queue := ctx.Value(queueKey{}).(*mux.ShardQueue)
		for {
			number, body, err := nextCall(conn.Reader())
			if err != nil {
				return err
			}
			go add(queue, frame(number, body))
			if conn.Reader().Len() < callHeaderBytes {
				return nil
			}
		}
	}
	connect := func(ctx context.Context, conn netpoll.Connection) context.Context {
		return context.WithValue(ctx, queueKey{}, mux.NewShardQueue(mux.ShardSize, conn))
	}
	loop, err := netpoll.NewEventLoop(handler, netpoll.WithOnConnect(connect))
	if err != nil {
		return err
	}
	return loop.Serve(listener)
}

type muxClient struct {
	queue   *mux.ShardQueue
	waiting sync.Map
	numbers atomic.Uint64
}

func dialMux(network, address string) (*muxClient, error) {
	conn, err := netpoll.DialConnection(network, address, 0)
	if err != nil {
		return nil, err
	}
	client := &muxClient{queue: mux.NewShardQueue(mux.ShardSize, conn)}
	conn.SetOnRequest(func(_ context.Context, conn netpoll.Connection) error {
		for {
			number, body, err := nextCall(conn.Reader())
			if err != nil {
				return err
			}
			if reply, ok := client.waiting.LoadAndDelete(number); ok {
				reply.(chan []byte) <- body
			}
			if conn.Reader().Len() < callHeaderBytes {
				return nil
			}
		}
	})
	return client, nil
}

func (client *muxClient) call(body []byte) []byte {
	number := client.numbers.Add(1)
	reply := make(chan []byte, 1)
	client.waiting.Store(number, reply)
	add(client.queue, frame(number, body))
	return <-reply
}

// callMux makes calls from so many goroutines over so many connections.
func callMux(network, address string, args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("usage: duopoll-peers mux-client ADDRESS CALLS TASKS CONNECTIONS BYTES")
	}
	var numbers [4]int
	for at := range numbers {
		number, err := strconv.Atoi(args[at])
		if err != nil {
			return err
		}
		numbers[at] = number
	}
	calls, tasks, connections, bytes := numbers[0], numbers[1], numbers[2], numbers[3]
	clients := make([]*muxClient, connections)
	for at := range clients {
		client, err := dialMux(network, address)
		if err != nil {
			return err
		}
		clients[at] = client
	}
	body := make([]byte, bytes)
	var group sync.WaitGroup
	for task := 0; task < tasks; task++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for call := task; call < calls; call += tasks {
				if len(clients[call%connections].call(body)) != bytes {
					fmt.Fprintln(os.Stderr, "a reply of another length")
					os.Exit(1)
				}
			}
		}()
	}
	group.Wait()
	os.Exit(0)
	return nil
}
