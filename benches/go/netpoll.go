package main

import (
	"context"

	"github.com/cloudwego/netpoll"
)

// serveNetpoll runs a handler with the nocopy API: Next, write, Flush, Release.
func serveNetpoll(network, address string) error {
	listener, err := netpoll.CreateListener(network, address)
	if err != nil {
		return err
	}
	loop, err := netpoll.NewEventLoop(handle)
	if err != nil {
		return err
	}
	return loop.Serve(listener)
}

func handle(_ context.Context, conn netpoll.Connection) error {
	reader, writer := conn.Reader(), conn.Writer()
	bytes, err := reader.Next(reader.Len())
	if err != nil {
		return err
	}
	if _, err := writer.WriteBinary(bytes); err != nil {
		return err
	}
	if err := writer.Flush(); err != nil {
		return err
	}
	return reader.Release()
}
