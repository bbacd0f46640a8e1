package main

import "github.com/panjf2000/gnet/v2"

// gnetEcho answers from the event loop with what the loop has read.
type gnetEcho struct {
	*gnet.BuiltinEventEngine
}

func (gnetEcho) OnTraffic(conn gnet.Conn) gnet.Action {
	bytes, err := conn.Next(-1)
	if err != nil {
		return gnet.Close
	}
	if _, err := conn.Write(bytes); err != nil {
		return gnet.Close
	}
	return gnet.None
}

// serveGnet keeps gnet's own read buffer of 64 KiB, which holds every burst.
func serveGnet(network, address string) error {
	return gnet.Run(gnetEcho{}, network+"://"+address,
		gnet.WithMulticore(false), gnet.WithTCPNoDelay(gnet.TCPNoDelay))
}
