package main

import (
	"context"
	"math/rand"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	errorDomain = "shardhold" // of the ErrorInfo that is Shardhold's; others come from what stands in between
	firstWait   = 50 * time.Millisecond
	longestWait = time.Second
)

// retriedReasons are those that pass by themselves; "" is a failure of the transport, which reached no handler.
var retriedReasons = map[string]bool{
	"":                     true,
	"NEXUS_RECOVERING":     true,
	"IDENTITY_UNAVAILABLE": true,
	"STORE_UNAVAILABLE":    true,
	"OUTCOME_UNKNOWN":      true,
	"NOT_SCRUBBED":         true,
}

var jitter = rand.New(rand.NewSource(time.Now().UnixNano()))

// repeat makes a call until it succeeds, fails for good, or ctx ends. In the last case it returns what the try before
// gave, which says more than that the time is over.
func repeat(ctx context.Context, call func() error) error {
	var last error
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		err := call()
		if last != nil && status.Code(err) == codes.DeadlineExceeded {
			return last
		}
		if err == nil || !isWorthRepeating(err) {
			return err
		}
		last = err
		select {
		case <-time.After(time.Duration(jitter.Int63n(int64(wait)))):
		case <-ctx.Done():
			return err
		}
	}
}

// isWorthRepeating says whether the same call may work soon. A server that stops ends its calls with Canceled.
func isWorthRepeating(err error) bool {
	code := status.Code(err)
	return (code == codes.Unavailable || code == codes.Canceled) && retriedReasons[reasonOf(err)]
}

// reasonOf returns the stable word for what went wrong, or "" where no Shardhold server answered.
func reasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Domain == errorDomain {
			return info.Reason
		}
	}
	return ""
}

func min(a, b time.Duration) time.Duration {
	if a < b {
		return a
	}
	return b
}
