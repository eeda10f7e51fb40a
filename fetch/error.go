package fetch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/distribution/reference"
)

// What can go wrong, for errors.Is.
var (
	ErrNotFound        = errors.New("fetch: not found")                         // no such repository, manifest or blob
	ErrUnauthorized    = errors.New("fetch: credentials missing or wrong")      // logging in could help
	ErrDenied          = errors.New("fetch: access denied")                     // the repository is private, or does not exist
	ErrForbidden       = errors.New("fetch: registry is not on the whitelist")  // see Client.Whitelist
	ErrTooManyRequests = errors.New("fetch: too many requests")                 // and waiting was no option
	ErrSchema1         = errors.New("fetch: manifest version 2, schema 1")      // an image in a format nobody supports now
	ErrNoPlatform      = errors.New("fetch: no manifest for the platform")      // the index has none
	ErrMediaType       = errors.New("fetch: unsupported media type")            // not a container image, or an unknown kind
	ErrVerification    = errors.New("fetch: content is not what was asked for") // wrong digest, size or type
)

// A classError is an error whose text is fixed by what dockerd says, and whose
// class is one of the variables above or nil.
type classError struct {
	class error
	msg   string
	cause error // or nil
}

func (e *classError) Error() string { return e.msg }

func (e *classError) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.class, e.cause} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// verificationError has the class ErrVerification.
func verificationError(format string, args ...any) error {
	return &classError{class: ErrVerification, msg: fmt.Sprintf(format, args...)}
}

// A RegistryError is a reply of a registry, a token service or a storage
// behind them that is not a success.
type RegistryError struct {
	Status     int           // HTTP status code
	Details    []ErrorDetail // what the registry said, the chief reason first; may be empty
	RetryAfter time.Duration // when to come back, if it told; else 0

	body string // beginning of a body that was not understood
}

// An ErrorDetail is one entry of the "errors" in the body of an error reply.
type ErrorDetail struct {
	Code    string // such as MANIFEST_UNKNOWN
	Message string // printable, for people
}

// Error words the reply as the docker registry client does.
func (e *RegistryError) Error() string {
	switch {
	case len(e.Details) == 1:
		return e.Details[0].String()
	case len(e.Details) > 1:
		var b strings.Builder
		b.WriteString("errors:")
		for _, d := range e.Details {
			b.WriteString("\n" + d.String())
		}
		return b.String()
	case e.Status == http.StatusUnauthorized:
		return "unauthorized: authentication required"
	case e.Status == http.StatusTooManyRequests:
		return "toomanyrequests: too many requests"
	case e.body != "" && e.Status >= 400 && e.Status < 500:
		return fmt.Sprintf("error parsing HTTP %d response body: %q", e.Status, e.body)
	}
	return strings.TrimSpace(fmt.Sprintf("received unexpected HTTP status: %d %s", e.Status, http.StatusText(e.Status)))
}

// Is says whether the reply is of the class of target, one of the Err
// variables.
func (e *RegistryError) Is(target error) bool {
	class := e.class()
	return class != nil && class == target
}

// class is one of the Err variables, or nil.
func (e *RegistryError) class() error {
	if len(e.Details) > 0 {
		switch e.Details[0].Code {
		case "UNAUTHORIZED":
			return ErrUnauthorized
		case "DENIED":
			return ErrDenied
		case "NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NOT_FOUND":
			return ErrNotFound
		case "TOOMANYREQUESTS":
			return ErrTooManyRequests
		}
	}
	switch e.Status {
	case http.StatusUnauthorized:
		return ErrUnauthorized
	case http.StatusForbidden:
		return ErrDenied
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusTooManyRequests:
		return ErrTooManyRequests
	}
	return nil
}

// String is the code in lower case, and the message.
func (d ErrorDetail) String() string {
	return strings.ToLower(strings.ReplaceAll(d.Code, "_", " ")) + ": " + d.Message
}

// knownCodes are the error codes of the distribution specification and of
// docker's registry, with the messages that they have by default.
var knownCodes = map[string]string{
	"UNKNOWN":               "unknown error",
	"UNSUPPORTED":           "The operation is unsupported.",
	"UNAUTHORIZED":          "authentication required",
	"DENIED":                "requested access to the resource is denied",
	"UNAVAILABLE":           "service unavailable",
	"TOOMANYREQUESTS":       "too many requests",
	"NAME_INVALID":          "invalid repository name",
	"NAME_UNKNOWN":          "repository name not known to registry",
	"TAG_INVALID":           "manifest tag did not match URI",
	"SIZE_INVALID":          "provided length did not match content length",
	"DIGEST_INVALID":        "provided digest did not match uploaded content",
	"MANIFEST_UNKNOWN":      "manifest unknown",
	"MANIFEST_INVALID":      "manifest invalid",
	"MANIFEST_UNVERIFIED":   "manifest failed signature verification",
	"MANIFEST_BLOB_UNKNOWN": "blob unknown to registry",
	"BLOB_UNKNOWN":          "blob unknown to registry",
	"RANGE_INVALID":         "invalid content range",
	"NOT_FOUND":             "not found",
}

// Limits of what is read and kept of an error reply.
const (
	maxErrorBody    = 1 << 20
	maxErrorDetails = 16
	maxMessage      = 2 << 10
	maxUnparsed     = 256
)

// replyError reads an error reply and closes it.
func replyError(resp *http.Response, now time.Time) *RegistryError {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	resp.Body.Close()
	e := &RegistryError{Status: resp.StatusCode, RetryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), now)}
	if err != nil {
		// The status alone has to do.
		body = nil
	}
	// RFC 6750, section 3.1: why a token was not good enough.
	for _, c := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		if c.scheme != "bearer" {
			continue
		}
		switch c.params["error"] {
		case "invalid_token":
			e.add("UNAUTHORIZED", c.params["error_description"])
		case "insufficient_scope":
			e.add("DENIED", c.params["error_description"])
		}
	}
	e.parseBody(body)
	return e
}

// parseBody takes over what the JSON of an error reply says.
func (e *RegistryError) parseBody(body []byte) {
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // Docker Hub's token service
	}
	err := json.Unmarshal(body, &doc)
	switch {
	case err == nil && len(doc.Errors) > 0:
		for _, d := range doc.Errors {
			e.add(d.Code, d.Message)
		}
	case err == nil && doc.Details != "":
		code := "UNKNOWN"
		switch e.Status {
		case http.StatusUnauthorized:
			code = "UNAUTHORIZED"
		case http.StatusTooManyRequests:
			code = "TOOMANYREQUESTS"
		}
		e.add(code, doc.Details)
	case len(e.Details) == 0:
		e.body = printable(string(body[:min(len(body), maxUnparsed)]), maxUnparsed)
	}
}

// add appends an entry, unless there are too many or it was said before.
func (e *RegistryError) add(code, message string) {
	if len(e.Details) == maxErrorDetails {
		return
	}
	def, known := knownCodes[code]
	if !known {
		code, def = "UNKNOWN", knownCodes["UNKNOWN"]
	}
	d := ErrorDetail{Code: code, Message: printable(message, maxMessage)}
	if d.Message == "" {
		d.Message = def
	}
	for _, old := range e.Details {
		if old == d {
			return
		}
	}
	e.Details = append(e.Details, d)
}

// printable keeps at most limit bytes of a text that somebody else wrote and
// makes it safe for a terminal and a log line.
func printable(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s))
}

// pullError gives an error of Resolve the words that dockerd has for it.
func pullError(err error, ref reference.Named) error {
	if errors.Is(err, errSchema1) {
		return &classError{class: ErrSchema1, msg: fmt.Sprintf("Docker Image Format v1 and Docker Image manifest version 2, schema 1 support has been removed. "+
			"Suggest the author of %s to upgrade the image to the OCI Format or Docker Image manifest v2, schema 2. "+
			"More information at https://docs.docker.com/go/deprecated-image-specs/", ref)}
	}
	re, ok := errors.AsType[*RegistryError](err)
	if !ok || errors.As(err, new(*url.Error)) {
		return err
	}
	code := ""
	if len(re.Details) > 0 {
		code = re.Details[0].Code
	}
	class, msg := re.class(), ""
	switch {
	case class == ErrDenied:
		msg = fmt.Sprintf("pull access denied for %s, repository does not exist or may require 'docker login'", reference.FamiliarName(ref))
	case code == "NAME_UNKNOWN":
		msg = fmt.Sprintf("repository %s not found", reference.FamiliarName(ref))
	case class == ErrNotFound && code != "BLOB_UNKNOWN":
		msg = fmt.Sprintf("manifest for %s not found", reference.FamiliarString(ref))
	default:
		return err
	}
	return &classError{class: class, msg: msg + ": " + err.Error(), cause: err}
}
