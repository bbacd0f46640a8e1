package main

import (
	"context"
	"encoding/binary"

	"github.com/cloudwego/netpoll"
)

// serveNetpoll runs a handler with the nocopy API: Next, write, Flush, Release.
func serveNetpoll(network, address string, framed bool) error {
	listener, err := netpoll.CreateListener(network, address)
	if err != nil {
		return err
	}
	handler := handle
	if framed {
		handler = handleFrames
	}
	loop, err := netpoll.NewEventLoop(handler)
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

// handleFrames waits for a whole message, and answers those that are there behind it with the
// same flush.
func handleFrames(_ context.Context, conn netpoll.Connection) error {
	reader, writer := conn.Reader(), conn.Writer()
	for {
		length, err := frameBytes(reader)
		if err != nil {
			return err
		}
		bytes, err := reader.Next(length)
		if err != nil {
			return err
		}
		if _, err := writer.WriteBinary(bytes); err != nil {
			return err
		}
		if reader.Len() < headerBytes {
			break
		}
		if length, err = frameBytes(reader); err != nil {
			return err
		}
		if reader.Len() < length {
			break
		}
	}
	if err := writer.Flush(); err != nil {
		return err
	}
	return reader.Release()
}

func frameBytes(reader netpoll.Reader) (int, error) {
	header, err := reader.Peek(headerBytes)
	if err != nil {
		return 0, err
	}
	return headerBytes + int(binary.BigEndian.Uint32(header)), nil
}
