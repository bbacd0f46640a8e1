package main

import "net"

// serveNet is a goroutine per connection on the standard library.
func serveNet(network, address string, bufferBytes int, framed bool) error {
	listener, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go echo(conn, bufferBytes, framed)
	}
}

func echo(conn net.Conn, bufferBytes int, framed bool) {
	defer conn.Close()
	buffer := make([]byte, bufferBytes)
	filled := 0
	for {
		n, err := conn.Read(buffer[filled:])
		if err != nil {
			return
		}
		filled += n
		answered := answerable(buffer[:filled], framed)
		if answered == 0 {
			continue
		}
		if _, err := conn.Write(buffer[:answered]); err != nil {
			return
		}
		filled = copy(buffer, buffer[answered:filled])
	}
}
