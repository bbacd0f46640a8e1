// A peer by quic-go: what another implementation of QUIC and HTTP/3 makes of ours.
//
//	quicgo browse ADDRESS CERTIFICATE  is told of HTTP/3 over TCP, and asks for pages by it
//	quicgo echo ADDRESS CERTIFICATE    sends on streams and reads it back, and moves to another socket
//	quicgo serve ADDRESS CERTIFICATE   echoes what comes on streams; says where, and ends with its input
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

const protocol = "echo"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "browse":
		return browse(args[1], args[2])
	case len(args) == 3 && args[0] == "echo":
		return echo(args[1], args[2])
	case len(args) == 3 && args[0] == "serve":
		return serve(args[1], args[2])
	}
	return errors.New("usage: quicgo browse|echo|serve ADDRESS CERTIFICATE")
}

func trusting(certificate string, protocols ...string) (*tls.Config, error) {
	file, err := os.ReadFile(certificate)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(file) {
		return nil, errors.New("no certificate")
	}
	return &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: protocols}, nil
}

// What a client reads of a page.
func fetch(client *http.Client, method, url string, body []byte) (*http.Response, []byte, error) {
	request, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	if method == http.MethodPost {
		request.Header.Set("content-type", "application/json")
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s: %w", method, url, err)
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s", method, url, response.Status)
	}
	return response, read, err
}

func browse(address, certificate string) error {
	trusted, err := trusting(certificate)
	if err != nil {
		return err
	}
	site := "https://" + address
	overTCP := &http.Client{Transport: &http.Transport{TLSClientConfig: trusted, ForceAttemptHTTP2: true}}
	response, read, err := fetch(overTCP, http.MethodGet, site+"/", nil)
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(address)
	told := response.Header.Get("alt-svc")
	if response.ProtoMajor != 2 || string(read) != "hello\n" || !strings.HasPrefix(told, `h3=":`+port+`"`) {
		return fmt.Errorf("over TCP: %s, %q, alt-svc %q", response.Proto, read, told)
	}

	transport := &http3.Transport{TLSClientConfig: trusted}
	defer transport.Close()
	client := &http.Client{Transport: transport}
	expect := func(method, path string, body, expected []byte) error {
		response, read, err := fetch(client, method, site+path, body)
		if err != nil {
			return err
		}
		if response.ProtoMajor != 3 || !bytes.Equal(read, expected) {
			return fmt.Errorf("%s %s: %s, %d bytes, not %d", method, path, response.Proto, len(read), len(expected))
		}
		return nil
	}
	var numbers bytes.Buffer
	for number := 1; number <= 1_000_000; number++ {
		fmt.Fprintln(&numbers, number)
	}
	upload := bytes.Repeat([]byte{7}, 32<<20)
	sum := fmt.Sprintf("%d bytes, which add up to %d\n", len(upload), uint32(7*len(upload)))
	err = errors.Join(
		expect(http.MethodGet, "/", nil, []byte("hello\n")),
		expect(http.MethodPost, "/sum", []byte(`{"numbers": [1, 2, 39]}`), []byte(`{"sum":42}`)),
		expect(http.MethodGet, "/count/1000000", nil, numbers.Bytes()),
		expect(http.MethodPut, "/upload", upload, []byte(sum)),
	)
	if err != nil {
		return err
	}
	if response, _, err := fetch(client, http.MethodGet, site+"/nowhere", nil); response == nil || response.StatusCode != http.StatusNotFound {
		return fmt.Errorf("a page that is not there: %v", err)
	}
	return together(64, func(int) error {
		return expect(http.MethodGet, "/count/1000", nil, numbers.Bytes()[:3893])
	})
}

// Runs so many at once.
func together(count int, run func(int) error) error {
	errs := make([]error, count)
	var all sync.WaitGroup
	for index := range errs {
		all.Add(1)
		go func() {
			defer all.Done()
			errs[index] = run(index)
		}()
	}
	all.Wait()
	return errors.Join(errs...)
}

func echo(address, certificate string) error {
	trusted, err := trusting(certificate, protocol)
	if err != nil {
		return err
	}
	remote, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	first, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	from := &quic.Transport{Conn: first}
	connection, err := from.Dial(ctx, remote, trusted, &quic.Config{})
	if err != nil {
		return err
	}
	trips := func() error {
		return together(32, func(index int) error {
			return roundTrip(ctx, connection, bytes.Repeat([]byte{byte(index)}, index*10_000))
		})
	}
	if err := trips(); err != nil {
		return err
	}
	if err := roundTrip(ctx, connection, bytes.Repeat([]byte("bulk"), 1<<20)); err != nil {
		return err
	}

	// To sockets that the peer does not know.
	for range 3 {
		next, err := net.ListenUDP("udp", nil)
		if err != nil {
			return err
		}
		path, err := connection.AddPath(&quic.Transport{Conn: next})
		if err != nil {
			return fmt.Errorf("a path: %w", err)
		}
		if err := path.Probe(ctx); err != nil {
			return fmt.Errorf("a probe: %w", err)
		}
		if err := path.Switch(); err != nil {
			return fmt.Errorf("a move: %w", err)
		}
		if err := trips(); err != nil {
			return err
		}
	}
	return connection.CloseWithError(0, "")
}

func roundTrip(ctx context.Context, connection *quic.Conn, sent []byte) error {
	stream, err := connection.OpenStreamSync(ctx)
	if err != nil {
		return err
	}
	written := make(chan error, 1)
	go func() {
		_, err := stream.Write(sent)
		written <- errors.Join(err, stream.Close())
	}()
	read, err := io.ReadAll(stream)
	if err := errors.Join(err, <-written); err != nil {
		return err
	}
	if !bytes.Equal(read, sent) {
		return fmt.Errorf("%d bytes came back of %d", len(read), len(sent))
	}
	return nil
}

func serve(address, certificate string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	made := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, made, made, &key.PublicKey, key)
	if err != nil {
		return err
	}
	encoded := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(certificate, encoded, 0o600); err != nil {
		return err
	}
	chain := []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	listener, err := quic.ListenAddr(address, &tls.Config{Certificates: chain, NextProtos: []string{protocol}}, nil)
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	go func() {
		for {
			connection, err := listener.Accept(context.Background())
			if err != nil {
				return
			}
			go answer(connection)
		}
	}()
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, listener.Close())
}

func answer(connection *quic.Conn) {
	for {
		stream, err := connection.AcceptStream(context.Background())
		if err != nil {
			return
		}
		go func() {
			defer stream.Close()
			_, _ = io.Copy(stream, stream)
		}()
	}
}
