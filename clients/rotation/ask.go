// Asks until a time of the clock, and prints how many checks were answered and why others were not; see run.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"consentd.dev/consentd"
)

func main() {
	address, files := os.Args[1], consentd.TLS{CAFile: os.Args[2], CertFile: os.Args[3], KeyFile: os.Args[4]}
	end, err := strconv.ParseFloat(os.Args[5], 64)
	if err != nil {
		panic(err)
	}
	client, err := consentd.New(consentd.WithAddress(address), consentd.WithTLS(files), consentd.WithTimeout(5*time.Second))
	if err != nil {
		panic(err)
	}
	asked, failures := 0, map[string]int{}
	question := consentd.Question{User: "15550100001", Business: "acme", Category: "marketing"}
	for float64(time.Now().UnixNano())/1e9 < end {
		verdict := client.MaySend(context.Background(), question)
		asked++
		if verdict.Reason != "NO_CONSENT" {
			failures[fmt.Sprintf("%v: %s", verdict, verdict.Cause)]++
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = client.Close()
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"asked": asked, "failures": failures})
}
