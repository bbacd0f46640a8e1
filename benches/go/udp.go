package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"syscall"
)

const (
	receiveBytes  = 16 << 20
	datagramBytes = 1600
	udpHeader     = 16
	groupMax      = 32
)

// serveUDP answers datagrams as the other servers do: see src/udp/service.rs.
func serveUDP(address string, words []string) error {
	if len(words) != 2 {
		return fmt.Errorf("usage: duopoll-peers udp ADDRESS echo|receive|send|bulk BYTES")
	}
	ask := words[0]
	bytes, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	config := net.ListenConfig{Control: setReceiveBytes}
	packets, err := config.ListenPacket(context.Background(), "udp4", address)
	if err != nil {
		return err
	}
	conn := packets.(*net.UDPConn)
	buffer := make([]byte, datagramBytes)
	received := uint64(0)
	for {
		n, peer, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return err
		}
		copies := uint64(1)
		if ask == "receive" || ask == "send" {
			received++
			if n < udpHeader {
				continue
			}
			argument := binary.LittleEndian.Uint64(buffer[8:])
			n, copies = bytes, min(argument, groupMax)
			if ask == "receive" {
				n, copies = udpHeader, min(argument, 1)
				binary.LittleEndian.PutUint64(buffer[8:], received)
			}
		}
		for range copies {
			if _, err := conn.WriteToUDPAddrPort(buffer[:n], peer); err != nil {
				return err
			}
		}
	}
}

// setReceiveBytes has room for all that is under way, as far as the kernel allows: above net.core.rmem_max needs CAP_NET_ADMIN.
func setReceiveBytes(_, _ string, raw syscall.RawConn) error {
	var set error
	err := raw.Control(func(fd uintptr) {
		set = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, receiveBytes)
		if set != nil {
			set = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBytes)
		}
	})
	if err != nil {
		return err
	}
	return set
}
