package main

import "github.com/panjf2000/gnet/v2"

// gnetEcho answers from the event loop with what the loop has read.
type gnetEcho struct {
	*gnet.BuiltinEventEngine
	framed bool
}

func (echo gnetEcho) OnTraffic(conn gnet.Conn) gnet.Action {
	bytes, err := conn.Peek(-1)
	if err != nil {
		return gnet.Close
	}
	answered := answerable(bytes, echo.framed)
	if answered == 0 {
		return gnet.None
	}
	if _, err := conn.Write(bytes[:answered]); err != nil {
		return gnet.Close
	}
	if _, err := conn.Discard(answered); err != nil {
		return gnet.Close
	}
	return gnet.None
}

// serveGnet keeps gnet's own read buffer of 64 KiB, which holds every burst.
func serveGnet(network, address string, framed bool) error {
	return gnet.Run(gnetEcho{framed: framed}, network+"://"+address,
		gnet.WithMulticore(false), gnet.WithTCPNoDelay(gnet.TCPNoDelay))
}
