package vch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm/appliance"
)

// Between two tries to reach an API whose address is known, but where nobody listens yet.
const (
	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
)

// start waits until the appliance, which is powered on, has an address and its API answers there, and notes that then what was being done
// to the VCH is done. The error has what the appliance says of itself.
func (v *VCH) start(ctx context.Context, timeout time.Duration, t TLS, report func(Event)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("after %v", timeout))
	defer cancel()
	if c, err := v.config(); err == nil && len(t.CA) == 0 {
		t.CA = filesOf(c)[tlsCA]
	}
	said := ""
	address, err := v.awaitAddress(ctx, func(s *appliance.Status) {
		if s.Error != "" && s.Error != said {
			said = s.Error
			report(Event{Note: "the appliance says: " + said})
		}
	})
	if err == nil {
		report(Event{Note: "the API is to be at " + address})
		err = v.awaitAPI(ctx, address, t)
	}
	if err == nil {
		return v.finish(ctx)
	}
	if said != "" {
		err = fmt.Errorf("%w; the appliance says: %s", err, said)
	}
	if text := v.console(context.WithoutCancel(ctx)); text != "" {
		err = fmt.Errorf("%w; its console ends with\n%s", err, text)
	}
	return err
}

// What is shown of a console.
const consoleBytes, consoleLines = 4 << 10, 12

// console is the end of the appliance's console, as far as it can be read.
func (v *VCH) console(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	d, _, err := v.containers(ctx)
	if err != nil {
		return ""
	}
	file := path.Join(applianceFolder, consoleFile)
	size, err := d.Stat(ctx, file)
	if err != nil {
		return ""
	}
	text := make([]byte, min(size, consoleBytes))
	if err := d.ReadRange(ctx, file, text, size-int64(len(text))); err != nil {
		return ""
	}
	clean := strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, string(text))
	lines := strings.Split(strings.TrimSpace(clean), "\n")
	return "    " + strings.Join(lines[max(0, len(lines)-consoleLines):], "\n    ")
}

// awaitAddress waits until vSphere knows where the API is.
func (v *VCH) awaitAddress(ctx context.Context, tell func(*appliance.Status)) (address string, err error) {
	off := false
	err = property.Wait(ctx, property.DefaultCollector(v.site.client), v.object.Self, []string{"runtime.powerState", "guest.ipAddress", "guest.net", "config.extraConfig"}, func(changes []types.PropertyChange) bool {
		for _, p := range changes {
			switch val := p.Val.(type) {
			case types.VirtualMachinePowerState:
				v.Power = val
				off = val == types.VirtualMachinePowerStatePoweredOff
			case string:
				v.guest().IpAddress = val
			case types.ArrayOfGuestNicInfo:
				v.guest().Net = val.GuestNicInfo
			case types.ArrayOfOptionValue:
				v.object.Config.ExtraConfig = val.OptionValue
			case types.OptionValue:
				v.setExtraConfig(val)
			}
		}
		if text := extraConfig(v.object.Config.ExtraConfig, appliance.StatusKey); text != "" {
			if s, err := appliance.ParseStatus(text); err == nil {
				v.Status = s
				tell(s)
			}
		}
		address = v.APIAddress()
		return address != "" || off
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return "", fmt.Errorf("the appliance has no address yet: %w", context.Cause(ctx))
	case err != nil:
		return "", fmt.Errorf("wait for the appliance: %w", err)
	case off:
		return "", errors.New("the appliance was powered off")
	}
	return address, nil
}

func (v *VCH) guest() *types.GuestInfo {
	if v.object.Guest == nil {
		v.object.Guest = new(types.GuestInfo)
	}
	return v.object.Guest
}

// setExtraConfig takes one key that has changed.
func (v *VCH) setExtraConfig(o types.OptionValue) {
	all := v.object.Config.ExtraConfig
	i := slices.IndexFunc(all, func(x types.BaseOptionValue) bool { return x.GetOptionValue().Key == o.Key })
	if i < 0 {
		v.object.Config.ExtraConfig = append(all, &o)
	} else {
		all[i] = &o
	}
}

// apiAddress is where the API is: on the interface of clients, by the address that is known of it.
func apiAddress(spec Spec, interfaces map[string][]string, guest *types.GuestInfo) string {
	port := strconv.Itoa(spec.TLS.port())
	name := client
	if len(interfaces[name]) == 0 {
		name = public // of which it is another role
	}
	for _, a := range interfaces[name] {
		if ip := net.ParseIP(a); ip != nil && !ip.IsUnspecified() && !ip.IsLinkLocalUnicast() {
			return net.JoinHostPort(a, port)
		}
	}
	if guest == nil || guest.IpAddress == "" {
		return ""
	}
	for _, all := range interfaces {
		if slices.Contains(all, guest.IpAddress) { // of another network
			return ""
		}
	}
	return net.JoinHostPort(guest.IpAddress, port)
}

// awaitAPI asks until the API answers. There is nothing else that tells when it does.
func (v *VCH) awaitAPI(ctx context.Context, address string, t TLS) error {
	pause := firstPause
	for {
		err := ask(ctx, v.Spec, address, t)
		if err == nil {
			return nil
		}
		if _, refused := errors.AsType[*tls.CertificateVerificationError](err); refused {
			return fmt.Errorf("the API at %s: %w", address, err)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("the API at %s does not answer, %w: %w", address, context.Cause(ctx), err)
		}
		pause = min(2*pause, maxPause)
	}
}

// askTime bounds one question.
const askTime = 10 * time.Second

// ask asks an API whether it is there.
func ask(ctx context.Context, spec Spec, address string, t TLS) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if spec.TLS == MutualTLS && len(t.ClientCert) == 0 {
		return shake(ctx, spec, address, t)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	scheme := "http"
	if spec.TLS != NoTLS {
		scheme = "https"
		var err error
		if transport.TLSClientConfig, err = t.client(spec, address); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+"/_ping", nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<10))
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return err
}

// shake looks at the server's certificate without a client's.
func shake(ctx context.Context, spec Spec, address string, t TLS) error {
	config, err := t.client(spec, address)
	if err != nil {
		return err
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		if strings.Contains(err.Error(), "certificate required") || strings.Contains(err.Error(), "handshake failure") {
			return nil // of TLS 1.2, where the client's certificate is part of the handshake
		}
		return err
	}
	return conn.Close()
}

// client is how a client connects: the server's certificate has to be for its name, or else for its address.
func (t TLS) client(spec Spec, address string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: rootsWith(t.CA)}
	if host, _, err := net.SplitHostPort(address); err == nil {
		config.ServerName = host
	}
	if names := spec.ServerNames(); len(names) > 0 && !slices.Contains(names, config.ServerName) {
		config.ServerName = names[0]
	}
	if spec.TLS == ServerTLS { // nobody has its authority for sure
		config.InsecureSkipVerify = true
	}
	if len(t.ClientCert) > 0 {
		pair, err := tls.X509KeyPair(t.ClientCert, t.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("the client's certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// finish notes in the container store that what was being done to the VCH is done.
func (v *VCH) finish(ctx context.Context) error {
	r := v.Record
	r.Changing = ""
	return v.putState(ctx, &r)
}
