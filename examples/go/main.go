// Command subscribe reads a topic over gRPC as a member of a consumer group, and acknowledges what it has printed.
//
//	subscribe 127.0.0.1:9080 shop readers
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	millrace "example.com/subscribe/millracev1"
)

// So much may be on its way to us. What has been dealt with is granted anew.
var credit = &millrace.Credit{Records: 1_000, Bytes: 4 << 20}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: subscribe ENDPOINT TOPIC GROUP")
	}
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	stop, done := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer done()
	for stop.Err() == nil {
		err := subscribe(stop, millrace.NewSubscriberClient(connection), os.Args[2], os.Args[3])
		switch {
		case err == nil:
		case status.Code(err) == codes.Unavailable:
			// The broker is away. What was not committed comes again.
			fmt.Printf("%% disconnected: %s\n", status.Convert(err).Message())
			time.Sleep(time.Second)
		default:
			log.Fatal(err)
		}
	}
}

// subscribe prints records until it is to stop, or the broker does.
func subscribe(stop context.Context, client millrace.SubscriberClient, topic, group string) error {
	// Its end ends the stream; a member leaves its group with that.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := client.Subscribe(ctx)
	if err != nil {
		return err
	}
	subscription := &millrace.Subscription{
		Topics:   []*millrace.TopicSelection{{Topic: topic}},
		Group:    group,
		Credit:   credit,
		ClientId: "go-example",
	}
	first := &millrace.SubscribeRequest{Request: &millrace.SubscribeRequest_Subscription{Subscription: subscription}}
	if err := stream.Send(first); err != nil && err != io.EOF {
		return err
	}
	responses, ended := receive(stream)
	stopping, unanswered := false, 0
	for !stopping || unanswered > 0 {
		select {
		case <-stop.Done():
			// It deals with no more records, and leaves when what was acknowledged is committed.
			stopping, stop = true, context.Background()
		case response, ok := <-responses:
			if !ok {
				return <-ended
			}
			switch response := response.Response.(type) {
			case *millrace.SubscribeResponse_Records:
				if stopping {
					continue
				}
				unanswered++
				// A failure to send shows as the end of the stream, with its reason.
				if err := dealWith(stream, response.Records); err != nil && err != io.EOF {
					return err
				}
			case *millrace.SubscribeResponse_Acknowledged:
				unanswered--
				for _, result := range response.Acknowledged.Results {
					if result.Error != nil {
						// Another member has the partition by now, and is given those records again.
						fmt.Printf("%% not committed: %s\n", result.Error.Message)
					}
				}
			case *millrace.SubscribeResponse_Assigned:
				for _, partition := range response.Assigned.Partitions {
					fmt.Printf("%% assigned %s/%d at %d\n", partition.Topic, partition.Partition, partition.Offset)
				}
			case *millrace.SubscribeResponse_Revoked:
				for _, partition := range response.Revoked.Partitions {
					fmt.Printf("%% revoked %s/%d\n", partition.Topic, partition.Partition)
				}
			}
		}
	}
	return nil
}

// receive passes on what the broker sends, and then why the stream ended.
func receive(stream millrace.Subscriber_SubscribeClient) (<-chan *millrace.SubscribeResponse, <-chan error) {
	responses, ended := make(chan *millrace.SubscribeResponse), make(chan error, 1)
	go func() {
		defer close(responses)
		for {
			response, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case responses <- response:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	return responses, ended
}

// dealWith prints records, acknowledges them, and grants their credit anew.
func dealWith(stream millrace.Subscriber_SubscribeClient, records *millrace.Records) error {
	var next int64
	for _, record := range records.Records {
		fmt.Printf("%s\t%d\t%d\t%d\t%s\n",
			records.Topic, records.Partition, record.Offset, record.TimestampMs, record.GetValue())
		next = record.Offset + 1
	}
	// Whatever was done with them must be done before they are acknowledged.
	done := &millrace.PartitionOffset{Topic: records.Topic, Partition: records.Partition, Offset: next}
	acknowledgement := &millrace.Acknowledgement{Offsets: []*millrace.PartitionOffset{done}}
	granted := &millrace.Credit{Records: uint64(len(records.Records)), Bytes: records.Bytes}
	err := stream.Send(&millrace.SubscribeRequest{
		Request: &millrace.SubscribeRequest_Acknowledgement{Acknowledgement: acknowledgement},
	})
	if err != nil {
		return err
	}
	return stream.Send(&millrace.SubscribeRequest{Request: &millrace.SubscribeRequest_Credit{Credit: granted}})
}
