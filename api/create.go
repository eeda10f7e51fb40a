package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/containervm"
	"vic/layerstore"
)

// createContainer is the first half of docker run. It answers 404 only if the image is not there: a
// client takes any 404 for that, pulls the image and tries again.
func (s *Server) createContainer(w http.ResponseWriter, r *http.Request) error {
	var body createBody
	if err := decodeBody(r, &body); err != nil {
		return err
	}
	if body.Config == nil {
		return badRequest("config cannot be empty in order to create a container")
	}
	if body.HostConfig == nil {
		body.HostConfig = new(hostConfig)
	}
	if err := checkValues(body.HostConfig); err != nil {
		return err
	}
	if err := checkOptions(options, &body); err != nil {
		return err
	}
	if err := fillIn(&body, versionOf(r)); err != nil {
		return err
	}
	if body.Image == "" && len(body.Entrypoint)+len(body.Cmd) == 0 {
		return badRequest("no command specified")
	}
	img, err := s.findImage(body.Image)
	if err != nil {
		return err
	}
	warnings, err := s.checkImage(r, &body, img)
	if err != nil {
		return err
	}
	c, more, err := s.newContainer(r.Context(), &body, img, containervm.Spec{Name: r.URL.Query().Get("name")})
	if err != nil {
		return createError(err)
	}
	return writeJSON(w, http.StatusCreated, container.CreateResponse{ID: c.ID(), Warnings: append(warnings, more...)})
}

// newContainer makes a container of an image as the body says, whose options have been checked, with the name and
// transience of own, and returns what is to be warned of.
func (s *Server) newContainer(ctx context.Context, body *createBody, img *layerstore.Image, own containervm.Spec) (*containervm.Container, []string, error) {
	cfg, err := imageConfig(img.RawConfig)
	if err != nil {
		return nil, nil, err
	}
	warnings := swapWarning(&body.HostConfig.Resources)
	if err := merge(body.Config, cfg); err != nil {
		return nil, nil, err
	}
	spec, err := specOf(body, s.containers.Resources())
	if err != nil {
		return nil, nil, err
	}
	if err := s.setMounts(&spec, body); err != nil {
		return nil, nil, err
	}
	spec.Name, spec.Transient, spec.ImageID = own.Name, own.Transient, img.ID
	c, err := s.containers.Create(ctx, spec)
	return c, warnings, err
}

// createError keeps an image that was removed meanwhile and a volume driver the only reasons for a 404, as in Docker:
// clients pull the image then.
func createError(err error) error {
	if statusOf(err) == http.StatusNotFound && !errors.Is(err, layerstore.ErrNotFound) && !errors.Is(err, layerstore.ErrNoDriver) {
		return &statusError{http.StatusBadRequest, err}
	}
	return err
}

// checkImage refuses an image of another platform than the request's, and warns of one of another than
// the host's that was not asked for.
func (s *Server) checkImage(r *http.Request, body *createBody, img *layerstore.Image) ([]string, error) {
	warnings := []string{}
	host := platforms.Normalize(ocispec.Platform{OS: "linux", Architecture: platforms.DefaultSpec().Architecture})
	text := r.URL.Query().Get("platform")
	if text == "" {
		if p := imagePlatform(img); !platforms.Only(host).Match(p) {
			warnings = append(warnings, fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested",
				platforms.Format(p), platforms.Format(host)))
		}
		return warnings, nil
	}
	want, err := parsePlatform(text)
	if err != nil {
		return nil, err
	}
	return warnings, checkPlatform(img, body.Image, want)
}

// parsePlatform reads OS[/ARCHITECTURE[/VARIANT]]; "" is nil, none in particular.
func parsePlatform(text string) (*ocispec.Platform, error) {
	if text == "" {
		return nil, nil
	}
	p, err := platforms.Parse(text)
	if err != nil {
		return nil, badRequest("%w", err)
	}
	return &p, nil
}

func (s *Server) container(r *http.Request) (*containervm.Container, error) {
	return s.containers.Container(param(r, "id"))
}
