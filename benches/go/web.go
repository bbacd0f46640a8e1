package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// What is answered, as in shape.rs.
const (
	largeBytes = 1 << 20
	pieceBytes = 16 << 10
	messages   = 1000
)

type catalogue struct {
	Total int    `json:"total"`
	Items []item `json:"items"`
}

type item struct {
	ID         int       `json:"id"`
	Name       string    `json:"name"`
	Note       string    `json:"note"`
	PriceCents int       `json:"price_cents"`
	Tags       [2]string `json:"tags"`
	Available  bool      `json:"available"`
}

func teapots() catalogue {
	all := catalogue{Total: 8}
	for i := range all.Total {
		note := "short and stout, of enamel"
		if i == 0 {
			note = "short and stout, of purple enamel"
		}
		all.Items = append(all.Items, item{100 + i, "teapot", note, 1990 + i, [2]string{"kitchen", "tea"}, i%2 == 0})
	}
	return all
}

// serveHTTP answers by HTTP/1 and HTTP/2, over TLS if there is a folder with a certificate.
func serveHTTP(address, folder string) error {
	large := []byte(strings.Repeat("x", largeBytes))
	all := teapots()
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "hello\n")
	})
	mux.HandleFunc("/json", func(w http.ResponseWriter, _ *http.Request) {
		body, err := json.Marshal(all)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(largeBytes))
		w.Write(large)
	})
	mux.HandleFunc("/pieces", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(largeBytes))
		piece := make([]byte, pieceBytes)
		for start := 0; start < largeBytes; start += pieceBytes {
			w.Write(piece[:copy(piece, large[start:])])
		}
	})
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		count, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		io.WriteString(w, strconv.FormatInt(count, 10))
	})
	server := http.Server{Addr: address, Handler: mux, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)
	if folder == "" {
		server.Protocols.SetUnencryptedHTTP2(true)
		return server.ListenAndServe()
	}
	server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13}
	return server.ListenAndServeTLS(certificate(folder))
}

func certificate(folder string) (string, string) {
	return filepath.Join(folder, "certificate.pem"), filepath.Join(folder, "key.pem")
}

// bench is the service duopoll.Bench. Its message is that of wrapperspb.BytesValue.
type bench interface {
	unary(*wrapperspb.BytesValue) *wrapperspb.BytesValue
}

type echoing struct{}

func (echoing) unary(payload *wrapperspb.BytesValue) *wrapperspb.BytesValue { return payload }

var description = grpc.ServiceDesc{
	ServiceName: "duopoll.Bench",
	HandlerType: (*bench)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Unary",
		Handler: func(server any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			payload := new(wrapperspb.BytesValue)
			if err := decode(payload); err != nil {
				return nil, err
			}
			return server.(bench).unary(payload), nil
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName:    "Messages",
		ServerStreams: true,
		Handler: func(server any, stream grpc.ServerStream) error {
			payload := new(wrapperspb.BytesValue)
			if err := stream.RecvMsg(payload); err != nil {
				return err
			}
			for range messages {
				if err := stream.SendMsg(payload); err != nil {
					return err
				}
			}
			return nil
		},
	}},
}

// serveGRPC answers by grpc-go, over TLS if there is a folder with a certificate.
func serveGRPC(network, address, folder string) error {
	var options []grpc.ServerOption
	if folder != "" {
		pair, err := tls.LoadX509KeyPair(certificate(folder))
		if err != nil {
			return err
		}
		config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	server := grpc.NewServer(options...)
	server.RegisterService(&description, echoing{})
	return server.Serve(listener)
}
