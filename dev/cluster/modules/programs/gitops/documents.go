package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// document is one manifest of a file.
type document struct {
	kind    string
	content []byte
}

func documents(path string) ([]document, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	found := []document{}
	reader := kubeyaml.NewYAMLReader(bufio.NewReader(file))
	for {
		content, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		meta := metav1.TypeMeta{}
		if err := yaml.Unmarshal(content, &meta); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		found = append(found, document{meta.APIVersion + " " + meta.Kind, content})
	}
}

// read decodes the only document of a kind in a file.
func read(path, kind string, into any) error {
	found, err := documents(path)
	if err != nil {
		return err
	}
	for _, document := range found {
		if document.kind == kind {
			return yaml.UnmarshalStrict(document.content, into)
		}
	}
	return fmt.Errorf("%s holds no %s", path, kind)
}
