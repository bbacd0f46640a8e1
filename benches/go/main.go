// Command duopoll-peers serves the echo protocol of the comparison with a Go library:
//
//	duopoll-peers netpoll|gnet|net ADDRESS [READ_BUFFER_BYTES]
//
// ADDRESS is IP:PORT or unix:PATH. The caller sets GOMAXPROCS.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: duopoll-peers netpoll|gnet|net ADDRESS [READ_BUFFER_BYTES]"))
	}
	network, address := "tcp", os.Args[2]
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	bufferBytes := 4096
	if len(os.Args) > 3 {
		parsed, err := strconv.Atoi(os.Args[3])
		if err != nil {
			fail(err)
		}
		bufferBytes = parsed
	}

	var err error
	switch os.Args[1] {
	case "netpoll":
		err = serveNetpoll(network, address)
	case "gnet":
		err = serveGnet(network, address)
	case "net":
		err = serveNet(network, address, bufferBytes)
	default:
		err = fmt.Errorf("no server named %q", os.Args[1])
	}
	fail(err)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
