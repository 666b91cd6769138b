// Package consentd asks a consentd sidecar whether a WhatsApp message may be sent, and denies when
// it gets no answer.
//
//	client, err := consentd.New()
//	if err != nil {
//		log.Fatal(err) // The address or an option is malformed.
//	}
//	defer client.Close()
//
//	verdict := client.MaySend(ctx, consentd.Question{
//		User: "+1 555 012 3456", Business: "acme", Category: "marketing", Form: consentd.TemplateForm,
//	})
//	if verdict.Allowed {
//		// Send the message now.
//	}
//
// A process makes one [Client] and shares it: all its methods may be called by many goroutines at
// once. Concurrent checks become batches by themselves, which costs a sender much less than asking
// one by one.
//
// The messages of the gRPC contract are in package consentv1. Package consentdtest has what the
// tests of a sender need.
package consentd

// Version is the version of this package, which is also that of the sidecar that it came with.
const Version = "0.1.0"
