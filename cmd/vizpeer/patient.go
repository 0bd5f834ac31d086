package main

import (
	"context"
	"net"
	"sync"
	"time"
)

// answerGrace is how long an answer may take to be read once the other side
// takes no more.
const answerGrace = 3 * time.Second

// patientConn is a connection whose failure to write is told only when nothing
// more is to be read. A peer that refuses an upload answers and takes no more of
// it: HTTP's client would report the broken upload, and lose the answer that lies
// in the receive buffer and says why.
type patientConn struct {
	net.Conn
	quiet func()        // nothing more will be read; may be called again
	over  chan struct{} // closed by quiet
}

func dialPatiently(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: answerTimeout}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	over := make(chan struct{})
	return &patientConn{Conn: conn, over: over, quiet: sync.OnceFunc(func() { close(over) })}, nil
}

func (c *patientConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.quiet()
	}
	return n, err
}

func (c *patientConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		grace := time.NewTimer(answerGrace)
		defer grace.Stop()
		select {
		case <-c.over:
		case <-grace.C:
		}
	}
	return n, err
}

func (c *patientConn) Close() error {
	c.quiet()
	return c.Conn.Close()
}
