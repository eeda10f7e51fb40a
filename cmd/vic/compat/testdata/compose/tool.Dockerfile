FROM bb
ARG WHO
RUN echo "for $WHO" >/who
COPY *.yml /made/
CMD ["cat", "/who"]
