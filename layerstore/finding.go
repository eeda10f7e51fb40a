package layerstore

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// What a Finding is about.
const (
	AboutBase      = "base"      // the empty disk under all layers
	AboutLayer     = "layer"     // ID is a chain ID
	AboutImage     = "image"     // ID is that of the image
	AboutFiles     = "files"     // the file system of an image, ID is the image's
	AboutName      = "name"      // ID is the name's file
	AboutContainer = "container" // ID is that of the container
	AboutVolume    = "volume"    // ID is its name
	AboutFile      = "file"      // a file that is nothing of these
)

// A Finding is something that Check does not like.
type Finding struct {
	About   string `json:"about"`        // one of the constants
	ID      string `json:"id,omitempty"` // of what it is about
	Path    string `json:"path"`         // the file or folder
	Problem string `json:"problem"`      // what is wrong with it
	Advice  string `json:"advice"`       // what to do about it
	// Harmless is set for what only takes up space: what crashes leave.
	Harmless bool `json:"harmless"`
	// Images and Containers are those that the damage affects: images by a name, or by
	// their ID if they have none; containers by their ID.
	Images     []string `json:"images,omitempty"`
	Containers []string `json:"containers,omitempty"`
	// Unrepaired says why Repair left it so.
	Unrepaired string `json:"unrepaired,omitempty"`
}

// A census is which images and containers stand on which layers.
type census struct {
	names  map[digest.Digest][]reference.Named // of each image
	images map[digest.Digest]*Image            // readable ones
	users  map[digest.Digest][]digest.Digest   // images of each layer, ascending
	pins   []*pin                              // readable ones
}

// censusOf reads images, names and pins. What cannot be read is left out.
func (d Dir) censusOf() (*census, error) {
	c := &census{images: make(map[digest.Digest]*Image), users: make(map[digest.Digest][]digest.Digest)}
	var err error
	if c.names, err = d.allNames(func(error) {}); err != nil {
		return nil, err
	}
	ids, err := d.imageIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		img, err := d.readImage(id)
		if err != nil {
			continue
		}
		img.Names = c.names[id]
		c.images[id] = img
		for _, l := range img.Layers {
			c.users[l.Chain] = append(c.users[l.Chain], id)
		}
	}
	containers, err := listDir(d.containers())
	if err != nil {
		return nil, err
	}
	for _, id := range containers {
		if p, err := d.readPin(id); err == nil {
			c.pins = append(c.pins, p)
		}
	}
	return c, nil
}

// name returns how people know an image.
func (c *census) name(id digest.Digest) string {
	if refs := c.names[id]; len(refs) > 0 {
		return reference.FamiliarString(refs[0])
	}
	return id.String()
}

// imagesOf returns the names of the images that have a layer.
func (c *census) imagesOf(chain digest.Digest) []string {
	var names []string
	for _, id := range c.users[chain] {
		names = append(names, c.name(id))
	}
	return names
}

// pinsOf returns the pins that hold a layer.
func (c *census) pinsOf(chain digest.Digest) []*pin {
	return slices.DeleteFunc(slices.Clone(c.pins), func(p *pin) bool { return !slices.Contains(p.Layers, chain) })
}

// containersOf returns the IDs of the containers that stand on a layer.
func (c *census) containersOf(chain digest.Digest) []string {
	var ids []string
	for _, p := range c.pinsOf(chain) {
		ids = append(ids, p.id)
	}
	return ids
}

// report hands a finding on.
func (c *checker) report(f Finding) {
	f.Problem = strings.TrimPrefix(f.Problem, f.Path+": ") // many errors begin so
	c.tell(f)
}

// base reports damage to the disk under all layers, and so to everything.
func (c *checker) base(path, format string, args ...any) {
	c.baseBad = true
	f := Finding{About: AboutBase, Path: path, Problem: fmt.Sprintf(format, args...),
		Advice: "vic check --repair makes it again; else restore it from a backup, or make a new store"}
	for id := range c.images {
		f.Images = append(f.Images, c.name(id))
	}
	slices.Sort(f.Images)
	for _, p := range c.pins {
		f.Containers = append(f.Containers, p.id)
	}
	c.report(f)
}

// layer reports damage to a layer. Nothing has to be removed that a container needs: what
// repair or pull put in place has the same bytes.
func (c *checker) layer(chain digest.Digest, path, format string, args ...any) {
	c.bad[chain] = true
	f := Finding{About: AboutLayer, ID: chain.String(), Path: path, Problem: fmt.Sprintf(format, args...),
		Images: c.imagesOf(chain), Containers: c.containersOf(chain)}
	switch {
	case len(f.Images) > 0:
		f.Advice = fmt.Sprintf("vic check --repair; or remove %s and pull %s again", c.d.layer(chain), f.Images[0])
	case len(f.Containers) > 0:
		f.Advice = fmt.Sprintf("vic check --repair; if that does not help, pull again what container %s was made of, or remove it", strings.Join(f.Containers, ", "))
	default:
		f.Advice = "nothing needs it: vic gc"
	}
	c.report(f)
}

// image reports damage to what is known of an image, or that it is not there although a
// name says so.
func (c *checker) image(id digest.Digest, path, format string, args ...any) {
	c.report(Finding{About: AboutImage, ID: id.String(), Path: path, Problem: fmt.Sprintf(format, args...),
		Advice: fmt.Sprintf("vic check --repair; or pull %s again", c.name(id)), Images: []string{c.name(id)}})
}

// container reports damage to a container.
func (c *checker) container(id, path, advice, format string, args ...any) {
	c.report(Finding{About: AboutContainer, ID: id, Path: path, Problem: fmt.Sprintf(format, args...), Advice: advice, Containers: []string{id}})
}
