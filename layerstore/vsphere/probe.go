package vsphere

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"vic/vmdk"
)

// ProbeOptions are how a datastore is probed.
type ProbeOptions struct {
	// Place is where the virtual machines are made with which the probe tries disks.
	Place Place
	// Own is the virtual machine in which the program runs; nil is none, so nothing is written by hot-add.
	Own *OwnVM
	// Tried, which may be nil, is told of each trial when it is over.
	Tried func(Trial)
}

// An Outcome is how a trial ended.
type Outcome string

const (
	Works   Outcome = "works"
	Refused Outcome = "refused" // or failed
	Skipped Outcome = "skipped" // what it needs does not work, or it is not asked for
)

// A Trial is one thing that was tried.
type Trial struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail,omitempty"`
	Seconds float64 `json:"seconds"`
}

// A ProbeReport says what a datastore can do, as JSON or by Print.
type ProbeReport struct {
	Server    string   `json:"server"`    // product and version
	Datastore string   `json:"datastore"` // its name
	Kind      string   `json:"kind"`      // as of Space
	Free      int64    `json:"free"`      // bytes
	Trials    []Trial  `json:"trials"`
	Encoding  Encoding `json:"encoding"` // to use; "" if none works
	Reason    string   `json:"reason"`   // why this one
	// Left is what of the probe could not be removed, or was left by one that was killed: datastore paths, and names of
	// virtual machines.
	Left []string `json:"left,omitempty"`
}

// Print writes the report as text.
func (r *ProbeReport) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "server\t%s\ndatastore\t%s, %s, %d MiB free\n\n", r.Server, r.Datastore, r.Kind, r.Free>>20)
	for _, x := range r.Trials {
		fmt.Fprintf(t, "%s\t%s\t%.1fs\t%s\n", x.Name, x.Outcome, x.Seconds, x.Detail)
	}
	for _, name := range r.Left {
		fmt.Fprintf(t, "left behind\t%s\n", name)
	}
	fmt.Fprintf(t, "\nencoding\t%s\t(%s)\n", cmp.Or(r.Encoding, "none"), r.Reason)
	return t.Flush() // has the errors of all before
}

// probePrefix begins the name of the folder, and of each virtual machine, that a probe makes.
const probePrefix = "vic-probe-"

// probeEnd bounds how long a probe cleans up.
const probeEnd = 5 * time.Minute

// Probe tries on a datastore what cannot be known of it otherwise: whether its hosts take the disks that this package makes,
// in which way. It works in a folder of its own below the Datastore's and removes what it made, also when ctx ends. What the
// server refuses is in the report; the error is of a server that cannot be asked at all, or of ctx.
func (d *Datastore) Probe(ctx context.Context, o ProbeOptions) (*ProbeReport, error) {
	sp, err := d.Space(ctx)
	if err != nil {
		return nil, err
	}
	about := d.s.client.ServiceContent.About
	p := &prober{o: o, space: sp, report: &ProbeReport{Server: about.FullName, Datastore: d.ds.Name(), Kind: sp.Kind(), Free: sp.Free, Trials: []Trial{}}}
	var id [6]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	p.name = probePrefix + hex.EncodeToString(id[:])
	p.d = d.at(path.Join(d.root, p.name))
	if p.disk, err = probeDisk(); err != nil {
		return nil, err
	}
	if err := p.findLeft(ctx, d); err != nil {
		return nil, fmt.Errorf("probe %s: %w", d.Path("."), err)
	}
	p.run(ctx)
	p.clean(ctx)
	p.report.Encoding, p.report.Reason = p.choose()
	return p.report, ctx.Err()
}

// A prober is a probe that runs.
type prober struct {
	d      *Datastore // its folder
	name   string
	o      ProbeOptions
	space  Space
	report *ProbeReport

	disk     *vmdk.Disk // what is brought there
	vms      []string   // that were made, or nearly
	children int        // of hot-add
}

// isProbe tells whether a name is one of a probe's.
func isProbe(name string) bool { return strings.HasPrefix(name, probePrefix) }

// errSkip says that what is tried was not asked for.
var errSkip = errors.New("this runs in no virtual machine of the server, or was not told which")

// try makes one trial, if all that it needs works. Fn says what it saw.
func (p *prober) try(ctx context.Context, name string, needs []string, fn func() (string, error)) {
	t := Trial{Name: name, Outcome: Works}
	begun := time.Now()
	if ctx.Err() != nil {
		t.Outcome, t.Detail = Skipped, ctx.Err().Error()
	} else if need := p.missing(needs); need != "" {
		t.Outcome, t.Detail = Skipped, fmt.Sprintf("needs %q", need)
	} else if detail, err := fn(); errors.Is(err, errSkip) {
		t.Outcome, t.Detail = Skipped, err.Error()
	} else if err != nil {
		t.Outcome, t.Detail = Refused, err.Error()
	} else {
		t.Detail = detail
	}
	t.Seconds = time.Since(begun).Seconds()
	p.report.Trials = append(p.report.Trials, t)
	if p.o.Tried != nil {
		p.o.Tried(t)
	}
}

// missing is the first of these trials that does not work.
func (p *prober) missing(needs []string) string {
	for _, name := range needs {
		if !slices.ContainsFunc(p.report.Trials, func(t Trial) bool { return t.Name == name && t.Outcome == Works }) {
			return name
		}
	}
	return ""
}
