// Command shardhold-example puts and gets one field of a secret. It shows what a client of Shardhold needs in a language
// that has no SDK: docs/other-languages.md explains each step.
//
//	printf %s 'correct horse' | shardhold-example -address HOST:PORT -svid-dir DIR put team/app/db password
//	shardhold-example -address HOST:PORT -svid-dir DIR get team/app/db password
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"example.org/shardhold-example/shardholdv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	messageLimit  = 5 << 20 // bytes of one message, either way; gRPC's own default is 4 MiB
	requestIDSize = 16      // bytes
)

func main() {
	address := flag.String("address", "", "host:port of the nexus")
	svidDir := flag.String("svid-dir", "", "folder with svid.pem, svid_key.pem and bundle.pem")
	timeout := flag.Duration("timeout", 5*time.Second, "time for the call, all its tries included")
	flag.Parse()
	if *address == "" || *svidDir == "" || flag.NArg() != 3 {
		fail(2, fmt.Errorf("usage: shardhold-example -address HOST:PORT -svid-dir DIR put|get PATH FIELD"))
	}
	connection, err := connect(*address, svidFiles{*svidDir})
	if err != nil {
		fail(1, err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	secrets := shardholdv1.NewSecretServiceClient(connection)
	switch verb, path, field := flag.Arg(0), flag.Arg(1), flag.Arg(2); verb {
	case "put":
		err = put(ctx, secrets, path, field)
	case "get":
		err = get(ctx, secrets, path, field)
	default:
		fail(2, fmt.Errorf("got the verb %q, want put or get", verb))
	}
	if err != nil {
		fail(1, err)
	}
}

// connect prepares a connection, which gRPC opens with the first call and again whenever it is lost.
func connect(address string, svid svidFiles) (*grpc.ClientConn, error) {
	return grpc.Dial(
		address,
		grpc.WithTransportCredentials(credentials.NewTLS(svid.tlsConfig())),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(messageLimit), grpc.MaxCallRecvMsgSize(messageLimit)),
		// Finds a dead peer under a waiting call. The server closes a connection that pings more than every 10 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// By default a nexus that came back is found only after up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond,
			},
			MinConnectTimeout: 3 * time.Second,
		}),
	)
}

// put writes the next version of a secret, with what comes on standard input as its only field.
func put(ctx context.Context, secrets shardholdv1.SecretServiceClient, path, field string) error {
	value, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	// Made once, outside of the retries: a request that is repeated under its id writes nothing new.
	requestID := make([]byte, requestIDSize)
	if _, err := rand.Read(requestID); err != nil {
		return err
	}
	request := &shardholdv1.PutSecretRequest{
		Path:      path,
		Fields:    map[string][]byte{field: value},
		RequestId: requestID,
	}
	return repeat(ctx, func() error {
		written, err := secrets.PutSecret(ctx, request)
		if err == nil {
			fmt.Println("version", written.Version)
		}
		return err
	})
}

// get prints a field of the current version of a secret.
func get(ctx context.Context, secrets shardholdv1.SecretServiceClient, path, field string) error {
	var secret *shardholdv1.GetSecretResponse
	err := repeat(ctx, func() (err error) {
		secret, err = secrets.GetSecret(ctx, &shardholdv1.GetSecretRequest{Path: path})
		return err
	})
	if err != nil {
		return err
	}
	value, found := secret.Fields[field]
	if !found {
		return fmt.Errorf("%s: version %d has no field %q", path, secret.Version, field)
	}
	_, err = os.Stdout.Write(value)
	return err
}

func fail(code int, err error) {
	if reason := reasonOf(err); reason != "" {
		fmt.Fprintf(os.Stderr, "shardhold-example: error: %s: %v\n", reason, err)
	} else {
		fmt.Fprintf(os.Stderr, "shardhold-example: error: %v\n", err)
	}
	os.Exit(code)
}
