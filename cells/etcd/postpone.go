// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	// minPostponement and maxPostponement bound what a server may ask for: neither
	// does a client ask again at once, nor is it lost for longer than this.
	minPostponement = 10 * time.Millisecond
	maxPostponement = 30 * time.Second
	// postponementJitter spreads those who were told the same.
	postponementJitter = 0.2
)

// postpone is the answer of a server that has as many lists under way as it is
// to have. The code is one after which etcd's own clients don't try again by
// themselves: upon Unavailable they would, a hundred times, 25 ms apart.
func postpone(limit int, delay time.Duration) error {
	s := status.New(codes.ResourceExhausted,
		fmt.Sprintf("%d lists are being read, as many as may be at once: try again in %v", limit, delay.Round(time.Millisecond)))
	if detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}); err == nil {
		s = detailed
	}
	return s.Err()
}

// postponement says whether an error is such an answer, and after which time it
// asks the client to try again. It is no failure: the etcd is there and well.
func postponement(err error) (time.Duration, bool) {
	s, ok := status.FromError(err)
	if !ok || s.Code() != codes.ResourceExhausted {
		return 0, false
	}
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return min(max(info.GetRetryDelay().AsDuration(), minPostponement), maxPostponement), true
		}
	}
	return 0, false
}

// sleepPostponed waits for as long as a server has asked, or a little longer.
func sleepPostponed(ctx context.Context, delay time.Duration) error {
	return sleep(ctx, wait.Jitter(delay, postponementJitter))
}
