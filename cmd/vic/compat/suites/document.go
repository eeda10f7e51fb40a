package main

import "io"
import "fmt"

type report struct{ all []outcome }

func newReport(a []outcome) report { return report{a} }
func (r report) summary(out io.Writer) {
	n := map[string]map[string]int{}
	for _, o := range r.all {
		if n[o.suite] == nil {
			n[o.suite] = map[string]int{}
		}
		n[o.suite][o.verdict]++
	}
	fmt.Fprintln(out, n)
}
func (r report) document() []byte { return nil }
