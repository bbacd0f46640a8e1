// Command duopoll-peers serves the echo protocol of the comparison with a Go library:
//
//	duopoll-peers netpoll|gnet|net ADDRESS [READ_BUFFER_BYTES [bytes|framed]]
//	duopoll-peers udp ADDRESS echo|receive|send|bulk BYTES
//	duopoll-peers http|grpc ADDRESS [FOLDER_OF_CERTIFICATE]
//	duopoll-peers mux-server ADDRESS
//	duopoll-peers mux-client ADDRESS CALLS TASKS CONNECTIONS BYTES
//
// ADDRESS is IP:PORT or unix:PATH. Framed messages have their length in front, four bytes,
// big-endian, and only whole ones are answered. The caller sets GOMAXPROCS.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
)

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: duopoll-peers netpoll|gnet|net ADDRESS [READ_BUFFER_BYTES [bytes|framed]]"))
	}
	network, address := "tcp", os.Args[2]
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	folder := ""
	if len(os.Args) > 3 {
		folder = os.Args[3]
	}
	switch os.Args[1] {
	case "http":
		fail(serveHTTP(address, folder))
	case "grpc":
		fail(serveGRPC(network, address, folder))
	case "udp":
		fail(serveUDP(address, os.Args[3:]))
	case "mux-server":
		fail(serveMux(network, address))
	case "mux-client":
		fail(callMux(network, address, os.Args[3:]))
	}
	bufferBytes := 4096
	if len(os.Args) > 3 {
		parsed, err := strconv.Atoi(os.Args[3])
		if err != nil {
			fail(err)
		}
		bufferBytes = parsed
	}
	framed := len(os.Args) > 4 && os.Args[4] == "framed"

	var err error
	switch os.Args[1] {
	case "netpoll":
		err = serveNetpoll(network, address, framed)
	case "gnet":
		err = serveGnet(network, address, framed)
	case "net":
		err = serveNet(network, address, bufferBytes, framed)
	default:
		err = fmt.Errorf("no server named %q", os.Args[1])
	}
	fail(err)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

const headerBytes = 4

// answerable says how much of what was received can be answered: all of it, or the whole messages.
func answerable(received []byte, framed bool) int {
	if !framed {
		return len(received)
	}
	end := 0
	for len(received)-end >= headerBytes {
		next := end + headerBytes + int(binary.BigEndian.Uint32(received[end:]))
		if next > len(received) {
			break
		}
		end = next
	}
	return end
}
